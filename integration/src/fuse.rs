//! File systems that do not answer: FUSE mounts whose program is a test.

use std::{
    fs::File,
    io::{self, Read, Write},
    os::{
        fd::{AsFd, AsRawFd},
        unix::process::CommandExt,
    },
    path::Path,
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
};

use anyhow::{Context, Result, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::Place;

/// A mount nobody answers for. When it is dropped whoever waits for it gets an error.
pub struct Hung {
    _device: Arc<File>,
    stop: Arc<AtomicBool>,
    reader: Option<JoinHandle<()>>,
}

/// How little is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Silence {
    /// Nothing at all: who waits can be killed.
    Whole,
    /// That the file system is there, and then nothing: requests are taken and never answered, and who waits for one
    /// cannot even be killed.
    AfterHello,
}

impl Hung {
    /// Mounts one at `path` in the place.
    pub fn mount(place: &Place, path: &Path, silence: Silence) -> Result<Hung> {
        let device = File::options().read(true).write(true).open("/dev/fuse").context("open /dev/fuse")?;
        let number = device.as_raw_fd();
        let options = format!("fd={number},rootmode=40000,user_id=0,group_id=0,allow_other");
        let mut command = place.command("/bin/mount");
        command.args(["-i", "-t", "fuse", "hung"]).arg(path).args(["-o", &options]).stdin(Stdio::null());
        // SAFETY: fcntl is async-signal-safe, and the descriptor is open until after the spawn.
        unsafe {
            command.pre_exec(move || match libc::fcntl(number, libc::F_SETFD, 0) {
                -1 => Err(io::Error::last_os_error()),
                _ => Ok(()),
            });
        }
        let output = command.output().context("run mount")?;
        ensure!(output.status.success(), "mount a FUSE: {}", String::from_utf8_lossy(&output.stderr));
        let device = Arc::new(device);
        let stop = Arc::new(AtomicBool::new(false));
        let reader = (silence == Silence::AfterHello).then(|| {
            let (device, stop) = (device.clone(), stop.clone());
            thread::spawn(move || swallow(&device, &stop))
        });
        Ok(Hung { _device: device, stop, reader })
    }
}

impl Drop for Hung {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(reader) = self.reader.take() {
            reader.join().ok();
        }
    }
}

/// Answers the first request (FUSE_INIT, linux/fuse.h) and takes the others.
fn swallow(mut device: &File, stop: &AtomicBool) {
    // Room for the longest request and its headers, or the kernel hands none out.
    let mut request = vec![0; 1 << 18];
    let mut greeted = false;
    while !stop.load(Ordering::Acquire) {
        let mut ready = [PollFd::new(device.as_fd(), PollFlags::POLLIN)];
        if !matches!(poll(&mut ready, PollTimeout::from(20_u8)), Ok(1)) {
            continue;
        }
        let Ok(length) = device.read(&mut request) else { return };
        if greeted || length < 16 {
            continue;
        }
        // `fuse_out_header`: length, error, the request's number; `fuse_init_out`: version 7.31 and no feature.
        let mut answer = [80_u32, 0].map(u32::to_ne_bytes).concat();
        answer.extend_from_slice(&request[8..16]);
        answer.extend([7_u32, 31, 1 << 17, 0].map(u32::to_ne_bytes).concat());
        answer.extend([16_u16, 12].map(u16::to_ne_bytes).concat());
        answer.extend([1_u32 << 17, 1].map(u32::to_ne_bytes).concat());
        answer.resize(80, 0);
        if device.write(&answer).is_err() {
            return;
        }
        greeted = true;
    }
}
