//! Capabilities by name (capabilities(7)), and which of them a container gets.

use k8s_openapi::api::core::v1::Capabilities;

use super::config_error::ConfigError;

/// Names without their `CAP_`; the place is the number.
const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// What a container has unless its manifest says otherwise: containerd's set.
const DEFAULT: [&str; 14] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];

/// The bit of a capability, whose name may be written in any case and with or without `CAP_`.
fn bit(name: &str) -> Option<u64> {
    let upper = name.to_ascii_uppercase();
    let name = upper.strip_prefix("CAP_").unwrap_or(&upper);
    NAMES.iter().position(|known| *known == name).map(|number| 1 << number)
}

fn is_all(name: &str) -> bool {
    name.eq_ignore_ascii_case("ALL")
}

/// The mask of a container. `own` is the bounding set of the agent: nothing more can be given. A default the agent
/// lacks is left out (the agent has warned about that once); one that is asked for by name is an error.
///
/// The order is containerd's: `ALL` is added, then dropped, then single ones are added, then dropped. So `drop: [ALL]`
/// with `add: [X]` leaves X.
pub fn mask(wanted: Option<&Capabilities>, privileged: bool, own: u64, path: &str) -> Result<u64, ConfigError> {
    if privileged {
        return Ok(own);
    }
    let list = |list: Option<&Vec<String>>| list.cloned().unwrap_or_default();
    let add = list(wanted.and_then(|wanted| wanted.add.as_ref()));
    let drop = list(wanted.and_then(|wanted| wanted.drop.as_ref()));
    let named = |kind: &str, index: usize, name: &str| {
        let field = format!("{path}.capabilities.{kind}[{index}]");
        bit(name).ok_or_else(|| ConfigError::create(field, format!("unknown capability {name:?}")))
    };
    let mut mask = DEFAULT.iter().filter_map(|name| bit(name)).fold(0, |mask, bit| mask | bit) & own;
    if add.iter().any(|name| is_all(name)) {
        mask = own;
    }
    if drop.iter().any(|name| is_all(name)) {
        mask = 0;
    }
    for (index, name) in add.iter().enumerate().filter(|(_, name)| !is_all(name)) {
        let bit = named("add", index, name)?;
        if bit & own == 0 {
            let field = format!("{path}.capabilities.add[{index}]");
            return Err(ConfigError::create(field, format!("the agent itself does not have capability {name:?}")));
        }
        mask |= bit;
    }
    for (index, name) in drop.iter().enumerate().filter(|(_, name)| !is_all(name)) {
        mask &= !named("drop", index, name)?;
    }
    Ok(mask)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: u64 = (1 << 41) - 1;
    /// The 14 defaults as a number, as `capsh --decode=a80425fb` reads it.
    const DEFAULTS: u64 = 0xa804_25fb;
    const NET_ADMIN: u64 = 1 << 12;
    const CHOWN: u64 = 1;

    fn of(add: &[&str], drop: &[&str], privileged: bool, own: u64) -> Result<u64, ConfigError> {
        let list = |names: &[&str]| Some(names.iter().map(|name| (*name).to_owned()).collect());
        mask(Some(&Capabilities { add: list(add), drop: list(drop) }), privileged, own, "c")
    }

    #[test]
    fn add_and_drop_change_the_defaults() {
        let case = |sentence: &str, add: &[&str], drop: &[&str], expected: u64| {
            assert_eq!(of(add, drop, false, ALL), Ok(expected), "{sentence}");
        };
        assert_eq!(mask(None, false, ALL, "c"), Ok(DEFAULTS));
        case("nothing asked for", &[], &[], DEFAULTS);
        case("one added", &["NET_ADMIN"], &[], DEFAULTS | NET_ADMIN);
        case(
            "with the prefix and in small letters",
            &["cap_net_admin"],
            &["CAP_CHOWN"],
            (DEFAULTS | NET_ADMIN) & !CHOWN,
        );
        case("all dropped", &[], &["ALL"], 0);
        case("all dropped, one added", &["NET_ADMIN"], &["all"], NET_ADMIN);
        case("all added", &["ALL"], &[], ALL);
        case("all added, one dropped", &["ALL"], &["CHOWN"], ALL & !CHOWN);
        case("added and dropped", &["NET_ADMIN"], &["NET_ADMIN"], DEFAULTS);
    }

    #[test]
    fn nothing_is_given_that_the_agent_does_not_have() {
        let own = ALL & !CHOWN & !NET_ADMIN;
        assert_eq!(of(&[], &[], false, own), Ok(DEFAULTS & !CHOWN));
        assert_eq!(of(&["ALL"], &[], false, own), Ok(own));
        assert_eq!(of(&[], &["CHOWN"], true, own), Ok(own));
        let error = of(&["KILL", "NET_ADMIN"], &[], false, own).unwrap_err();
        assert_eq!(error.field, "c.capabilities.add[1]");
    }

    #[test]
    fn an_unknown_name_is_an_error() {
        assert_eq!(
            of(&["NOTHING"], &[], false, ALL).unwrap_err().to_string(),
            "c.capabilities.add[0]: unknown capability \"NOTHING\""
        );
        assert_eq!(of(&[], &["CHOWN", ""], false, ALL).unwrap_err().field, "c.capabilities.drop[1]");
    }
}
