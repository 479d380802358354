//! A command on a pseudo terminal of the test.

use std::{
    fs::File,
    io::{self, Read, Write},
    os::{fd::AsRawFd, unix::process::CommandExt},
    process::{Child, Command},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use nix::pty::{Winsize, openpty};

/// A running command and the other side of its terminal.
pub struct Terminal {
    child: Child,
    controller: File,
    text: Arc<Mutex<Vec<u8>>>,
    /// How much of the text `expect` has gone past.
    position: usize,
}

fn size(rows: u16, columns: u16) -> Winsize {
    Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 }
}

impl Terminal {
    /// Starts `command` on a new terminal of this size, as the leader of a session of its own.
    pub fn start(mut command: Command, rows: u16, columns: u16) -> Terminal {
        let pair = openpty(Some(&size(rows, columns)), None).expect("a pseudo terminal");
        let user = || pair.slave.try_clone().expect("duplicate the terminal");
        command.stdin(user()).stdout(user()).stderr(user());
        // SAFETY: setsid and ioctl are async-signal-safe; descriptor 0 is the terminal by then.
        unsafe {
            command.pre_exec(|| {
                if libc::setsid() < 0 || libc::ioctl(0, libc::TIOCSCTTY, 0) < 0 {
                    return Err(io::Error::last_os_error());
                }
                Ok(())
            });
        }
        let child = command.spawn().expect("the command starts");
        drop(command);
        drop(pair.slave);
        let controller = File::from(pair.master);
        let mut reader = controller.try_clone().expect("duplicate the controller");
        let text = Arc::new(Mutex::new(Vec::new()));
        let written = text.clone();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            // EIO is how a terminal says that its last user is gone.
            while let Ok(length @ 1..) = reader.read(&mut buffer) {
                written.lock().expect("the text").extend_from_slice(&buffer[..length]);
            }
        });
        Terminal { child, controller, text, position: 0 }
    }

    /// Kills the command (SIGKILL) and waits for its end; the terminal stays.
    pub fn kill(&mut self) {
        self.child.kill().expect("kill the command");
        self.child.wait().expect("wait for the command");
    }

    /// Types.
    pub fn write(&mut self, text: &str) {
        self.controller.write_all(text.as_bytes()).expect("type");
    }

    /// Everything that was shown.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.text.lock().expect("the text")).into_owned()
    }

    /// Whether `wanted` is shown behind what was found before, within `limit`.
    pub fn seen(&mut self, wanted: &str, limit: Duration) -> bool {
        let begun = Instant::now();
        loop {
            let text = self.text();
            if let Some(found) = text.get(self.position..).and_then(|text| text.find(wanted)) {
                self.position += found + wanted.len();
                return true;
            }
            if begun.elapsed() > limit {
                return false;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits for `wanted`; panics with everything that was shown.
    #[track_caller]
    pub fn expect(&mut self, wanted: &str, limit: Duration) {
        let found = self.seen(wanted, limit);
        assert!(found, "{wanted:?} is not shown:\n{}", self.text());
    }

    /// Changes the size, as a person does with a window.
    pub fn resize(&mut self, rows: u16, columns: u16) {
        // SAFETY: TIOCSWINSZ reads a winsize, which lives as long as the call.
        let result = unsafe { libc::ioctl(self.controller.as_raw_fd(), libc::TIOCSWINSZ, &size(rows, columns)) };
        assert_eq!(result, 0, "resize: {}", io::Error::last_os_error());
    }

    /// Waits for the command's end; its exit code.
    pub fn wait(&mut self, limit: Duration) -> Option<i32> {
        let begun = Instant::now();
        while begun.elapsed() < limit {
            if let Some(status) = self.child.try_wait().expect("wait") {
                return status.code();
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        None
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
