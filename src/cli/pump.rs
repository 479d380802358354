//! Copies between descriptors in one thread, without ever waiting for a writer while a reader has something.

use std::{
    fs::File,
    io::{self, Read, Write},
    os::fd::{AsFd, OwnedFd},
};

use nix::poll::{PollFd, PollFlags};

use crate::sys::stream::set_nonblocking;

/// Bytes copied at a time; the size of a pipe.
const CHUNK: usize = 64 * 1024;

/// One direction.
#[derive(Debug)]
pub struct Route {
    from: Option<File>,
    to: Option<File>,
    pending: Vec<u8>,
    /// Ends of pipes and terminals made for this session are non-blocking. The caller's own descriptors are left as
    /// they are, since other processes share them.
    input: bool,
    /// Something has come.
    carried: bool,
}

impl Route {
    /// From the caller to the command: `from` is the caller's, `to` ours.
    ///
    /// # Errors
    /// fcntl(2) failed.
    pub fn input(from: OwnedFd, to: OwnedFd) -> io::Result<Route> {
        set_nonblocking(to.as_fd())?;
        Ok(Route { from: Some(from.into()), to: Some(to.into()), pending: Vec::new(), input: true, carried: false })
    }

    /// From the command to the caller: `from` is ours, `to` the caller's.
    ///
    /// # Errors
    /// fcntl(2) failed.
    pub fn output(from: OwnedFd, to: OwnedFd) -> io::Result<Route> {
        set_nonblocking(from.as_fd())?;
        Ok(Route { from: Some(from.into()), to: Some(to.into()), pending: Vec::new(), input: false, carried: false })
    }

    /// Reads once; at the end of the source it is closed.
    fn read(&mut self) -> io::Result<bool> {
        let Some(from) = &mut self.from else { return Ok(false) };
        self.pending.resize(CHUNK, 0);
        let result = from.read(&mut self.pending);
        self.pending.truncate(*result.as_ref().unwrap_or(&0));
        match result {
            Ok(0) => self.from = None,
            Ok(_) => {
                self.carried = true;
                return Ok(true);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(false),
            // The master of a terminal whose last slave is closed says EIO.
            Err(error) if error.raw_os_error() == Some(nix::libc::EIO) => self.from = None,
            Err(error) => return Err(error),
        }
        // The end is passed on.
        self.to = None;
        Ok(false)
    }

    fn write(&mut self) -> io::Result<()> {
        let Some(to) = &mut self.to else { return Ok(()) };
        while !self.pending.is_empty() {
            match to.write(&self.pending) {
                Ok(written) => drop(self.pending.drain(..written)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if matches!(error.raw_os_error(), Some(nix::libc::EPIPE | nix::libc::EIO)) => {
                    // The reader has gone: so does the writer, then.
                    (self.from, self.to) = (None, None);
                    self.pending.clear();
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// All directions of a session.
#[derive(Debug, Default)]
pub struct Pump {
    routes: Vec<Route>,
}

impl Pump {
    /// Adds a direction.
    pub fn add(&mut self, route: Route) {
        self.routes.push(route);
    }

    /// What to wait for, and which route each entry belongs to: a route with something pending waits for its writer
    /// and reads no more until that is gone.
    pub fn interests(&self) -> (Vec<PollFd<'_>>, Vec<usize>) {
        let mut polled = Vec::new();
        let mut routes = Vec::new();
        for (index, route) in self.routes.iter().enumerate() {
            match (&route.from, &route.to) {
                (_, Some(to)) if !route.pending.is_empty() => {
                    polled.push(PollFd::new(to.as_fd(), PollFlags::POLLOUT));
                }
                (Some(from), _) => polled.push(PollFd::new(from.as_fd(), PollFlags::POLLIN)),
                _ => continue,
            }
            routes.push(index);
        }
        (polled, routes)
    }

    /// Goes on with the routes that are `ready`, by the entries of [`Pump::interests`].
    ///
    /// # Errors
    /// A descriptor broke in an unusual way.
    pub fn advance(&mut self, routes: &[usize], ready: &[bool]) -> io::Result<()> {
        for (index, _) in routes.iter().zip(ready).filter(|(_, ready)| **ready) {
            let route = &mut self.routes[*index];
            if route.pending.is_empty() {
                route.read()?;
            }
            route.write()?;
        }
        Ok(())
    }

    /// Whether the command has written anything.
    pub fn has_output(&self) -> bool {
        self.routes.iter().any(|route| !route.input && route.carried)
    }

    /// The command has ended: passes on what it has written, without waiting for more.
    ///
    /// # Errors
    /// As [`Pump::advance`].
    pub fn drain(&mut self) -> io::Result<()> {
        for route in self.routes.iter_mut().filter(|route| !route.input) {
            // The caller's descriptors block, so that each write is complete.
            route.write()?;
            while route.read()? {
                route.write()?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::pipe;

    use super::*;

    fn advance(pump: &mut Pump) {
        let (mut polled, routes) = pump.interests();
        nix::poll::poll(&mut polled, 0_u8).unwrap();
        let ready: Vec<bool> = polled.iter().map(|entry| entry.any().unwrap()).collect();
        drop(polled);
        pump.advance(&routes, &ready).unwrap();
    }

    #[test]
    fn a_full_writer_holds_its_reader_back_and_nothing_is_lost() {
        let (source, mut feed) = pipe().unwrap();
        let (mut sink, target) = pipe().unwrap();
        let mut pump = Pump::default();
        pump.add(Route::input(source.into(), target.into()).unwrap());
        let content: Vec<u8> = (0..400_000_u32).flat_map(u32::to_le_bytes).collect();
        let wanted = content.clone();
        let writer = std::thread::spawn(move || feed.write_all(&content).unwrap());
        let reader = std::thread::spawn(move || {
            let mut seen = Vec::new();
            sink.read_to_end(&mut seen).unwrap();
            seen
        });
        while pump.routes[0].to.is_some() {
            advance(&mut pump);
        }
        writer.join().unwrap();
        assert!(reader.join().unwrap() == wanted);
    }

    #[test]
    fn draining_takes_what_is_there_and_does_not_wait_for_other_writers() {
        let (source, mut feed) = pipe().unwrap();
        let (mut sink, target) = pipe().unwrap();
        let mut pump = Pump::default();
        pump.add(Route::output(source.into(), target.into()).unwrap());
        feed.write_all(b"last words").unwrap();
        assert!(!pump.has_output());
        pump.drain().unwrap();
        assert!(pump.has_output());
        drop(pump);
        let mut text = String::new();
        sink.read_to_string(&mut text).unwrap();
        assert_eq!(text, "last words");
    }

    #[test]
    fn a_reader_that_is_gone_ends_the_route() {
        let (source, mut feed) = pipe().unwrap();
        let (sink, target) = pipe().unwrap();
        drop(sink);
        let mut pump = Pump::default();
        pump.add(Route::output(source.into(), target.into()).unwrap());
        feed.write_all(b"x").unwrap();
        advance(&mut pump);
        assert!(pump.interests().0.is_empty());
        assert!(feed.write_all(b"x").is_err(), "the writer is told");
    }
}
