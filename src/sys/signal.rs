//! Signals: blocked and read from a descriptor, ignored, or given back their defaults.

use std::{
    io,
    mem::MaybeUninit,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
    ptr,
};

use libc::{c_int, sigset_t};

fn empty_set() -> sigset_t {
    let mut set = MaybeUninit::uninit();
    // SAFETY: sigemptyset initialises the whole set it is given.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        set.assume_init()
    }
}

/// All signals of the calling thread blocked, until dropped.
pub(super) struct BlockAll {
    before: sigset_t,
}

impl BlockAll {
    pub(super) fn new() -> BlockAll {
        let (mut all, mut before) = (empty_set(), empty_set());
        // SAFETY: both sets are initialised and outlive the calls, which cannot fail with these arguments.
        unsafe {
            libc::sigfillset(&raw mut all);
            libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut before);
        }
        BlockAll { before }
    }
}

impl Drop for BlockAll {
    fn drop(&mut self) {
        // SAFETY: `before` is the set that pthread_sigmask gave us.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.before, ptr::null_mut()) };
    }
}

/// Blocks `signals` in the calling thread and returns a non-blocking, close-on-exec descriptor from which they are
/// read instead (signalfd(2)). The mask is inherited through fork and exec: see [`restore_defaults`].
///
/// # Errors
/// EMFILE and the like.
pub fn descriptor_for(signals: &[i32]) -> io::Result<OwnedFd> {
    let mut set = empty_set();
    // SAFETY: `set` is initialised and outlives the calls; the new descriptor is known to nobody else.
    unsafe {
        for signal in signals {
            libc::sigaddset(&raw mut set, *signal);
        }
        libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, ptr::null_mut());
        match libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) {
            -1 => Err(io::Error::last_os_error()),
            descriptor => Ok(OwnedFd::from_raw_fd(descriptor)),
        }
    }
}

/// Takes what is pending on a signal descriptor, so that it is no longer readable. Which signals they were does not
/// matter to callers: a signal only says "look again".
pub fn drain(descriptor: BorrowedFd<'_>) {
    let mut records = MaybeUninit::<[libc::signalfd_siginfo; 4]>::uninit();
    // SAFETY: the kernel writes at most the size of the buffer, whose content is not looked at.
    while unsafe { libc::read(descriptor.as_raw_fd(), records.as_mut_ptr().cast(), size_of_val(&records)) } > 0 {}
}

/// Ignores `signal` from now on. Ignored signals stay ignored in programs that are executed.
pub fn ignore(signal: c_int) {
    // SAFETY: SIG_IGN is no handler that could run; fails only for numbers that are no signals.
    unsafe { libc::signal(signal, libc::SIG_IGN) };
}

/// Blocks `signal` in the calling thread, and so in the children it makes until they execute something else. Blocked, it
/// stays pending even where it is ignored.
pub fn block(signal: c_int) {
    let mut set = empty_set();
    // SAFETY: `set` is initialised and outlives the calls, which fail only for a number that is no signal.
    unsafe {
        libc::sigaddset(&raw mut set, signal);
        libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, ptr::null_mut());
    }
}

/// Whether a blocked signal has been sent.
pub fn is_pending(signal: c_int) -> bool {
    let mut set = empty_set();
    // SAFETY: `set` is initialised and outlives the calls, which cannot fail with these arguments.
    unsafe {
        libc::sigpending(&raw mut set);
        libc::sigismember(&raw const set, signal) == 1
    }
}

/// Has the whole process group of the caller killed once `signal` comes: a program that ends without a chance to tidy up
/// takes along what it has started. A thread of its own waits for it, because one that waits in the kernel for a file
/// system heeds nothing but a signal that ends the process. The caller must be the only thread so far.
///
/// # Errors
/// EAGAIN when there can be no further thread.
pub fn kill_group_upon(signal: c_int) -> io::Result<()> {
    block(signal);
    let wait = move || {
        let (mut set, mut caught) = (empty_set(), 0);
        // SAFETY: `set` is initialised and outlives the calls. The last one ends every process of the group, this one
        // included; as the group is named by 0, it cannot be another one.
        unsafe {
            libc::sigaddset(&raw mut set, signal);
            while libc::sigwait(&raw const set, &raw mut caught) != 0 {}
            libc::kill(0, libc::SIGKILL);
        }
    };
    std::thread::Builder::new().stack_size(64 << 10).spawn(wait).map(drop)
}

/// Blocks every signal in the calling thread for good, except SIGKILL and SIGSTOP.
pub fn block_all() {
    std::mem::forget(BlockAll::new());
}

/// Default action for every signal and an empty mask: what a program expects to find when it is executed.
pub fn restore_defaults() {
    let none = empty_set();
    // SAFETY: SIG_DFL is no handler that could run; numbers that cannot be changed are refused, which is ignored.
    unsafe {
        for signal in 1..=libc::SIGRTMAX() {
            libc::signal(signal, libc::SIG_DFL);
        }
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const none, ptr::null_mut());
    }
}

/// Waits for ever (for signals whose action ends the process).
pub fn wait_for_ever() -> ! {
    loop {
        // SAFETY: no arguments; returns only after a handler ran.
        unsafe { libc::pause() };
    }
}
