//! Signals as the API names them.

/// Names of the signals from 1 on, as Linux numbers them on x86 and ARM.
const NAMES: [&str; 31] = [
    "SIGHUP",
    "SIGINT",
    "SIGQUIT",
    "SIGILL",
    "SIGTRAP",
    "SIGABRT",
    "SIGBUS",
    "SIGFPE",
    "SIGKILL",
    "SIGUSR1",
    "SIGSEGV",
    "SIGUSR2",
    "SIGPIPE",
    "SIGALRM",
    "SIGTERM",
    "SIGSTKFLT",
    "SIGCHLD",
    "SIGCONT",
    "SIGSTOP",
    "SIGTSTP",
    "SIGTTIN",
    "SIGTTOU",
    "SIGURG",
    "SIGXCPU",
    "SIGXFSZ",
    "SIGVTALRM",
    "SIGPROF",
    "SIGWINCH",
    "SIGIO",
    "SIGPWR",
    "SIGSYS",
];

/// The first and the last real-time signal, as C libraries count them.
const REALTIME: (i32, i32) = (34, 64);

/// The name of a signal, as `stopSignal` has it: `SIGTERM`, `SIGRTMIN+3`, `SIGRTMAX-14`. A number without a name stays one.
pub fn name(number: i32) -> String {
    let (first, last) = REALTIME;
    // As upstream lists them: the lower half counts from the first, the upper half from the last.
    let middle = first + 15;
    match number {
        1..=31 => usize::try_from(number - 1).map_or_else(|_| number.to_string(), |index| NAMES[index].to_owned()),
        _ if number == first => "SIGRTMIN".to_owned(),
        _ if number == last => "SIGRTMAX".to_owned(),
        _ if (first..=middle).contains(&number) => format!("SIGRTMIN+{}", number - first),
        _ if (middle..last).contains(&number) => format!("SIGRTMAX-{}", last - number),
        _ => number.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_the_names_that_the_api_accepts() {
        for (number, expected) in [
            (1, "SIGHUP"),
            (15, "SIGTERM"),
            (31, "SIGSYS"),
            (34, "SIGRTMIN"),
            (37, "SIGRTMIN+3"),
            (49, "SIGRTMIN+15"),
            (50, "SIGRTMAX-14"),
            (64, "SIGRTMAX"),
            (0, "0"),
            (33, "33"),
            (65, "65"),
        ] {
            assert_eq!(name(number), expected);
        }
    }
}
