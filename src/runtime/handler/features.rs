//! What a runtime says that it can do (`features`; features.md of the OCI runtime specification), and what follows for a
//! container: what it cannot do is refused by name. A runtime that does not say is taken at its word, that of the
//! specification's first version.

use serde_json::Value;

use crate::{
    api::container_ref::ContainerRef,
    runtime::{config_error::ConfigError, launch::CgroupVersion},
    supervisor::spec::{LaunchSpec, RecursiveReadOnly},
};

/// What a runtime can do, as far as containers can ask for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Features {
    /// seccomp filters.
    pub seccomp: bool,
    /// AppArmor profiles.
    pub app_armor: bool,
    /// Binds that are read-only with all that is mounted beneath (`rro`).
    pub recursive_read_only: bool,
    /// User namespaces with idmapped mounts.
    pub user_namespaces: bool,
    /// cgroups of version 1, of version 2.
    pub cgroups: [bool; 2],
}

impl Default for Features {
    fn default() -> Features {
        Features::unknown()
    }
}

impl Features {
    /// Of a runtime that does not say.
    pub fn unknown() -> Features {
        Features {
            seccomp: true,
            app_armor: true,
            recursive_read_only: false,
            user_namespaces: false,
            cgroups: [true, true],
        }
    }

    /// What `features` printed. A field that is not there is one that the runtime does not speak of.
    pub fn parse(text: &str) -> Features {
        let unknown = Features::unknown();
        let Ok(said) = serde_json::from_str::<Value>(text) else { return unknown };
        let flag = |pointer: &str, otherwise: bool| said.pointer(pointer).and_then(Value::as_bool).unwrap_or(otherwise);
        let options = said["mountOptions"].as_array().map(Vec::as_slice).unwrap_or_default();
        Features {
            seccomp: flag("/linux/seccomp/enabled", unknown.seccomp),
            app_armor: flag("/linux/apparmor/enabled", unknown.app_armor),
            recursive_read_only: options.iter().any(|option| option == "rro"),
            user_namespaces: flag("/linux/mountExtensions/idmap/enabled", false),
            cgroups: [flag("/linux/cgroup/v1", true), flag("/linux/cgroup/v2", true)],
        }
    }

    /// Refuses what `spec` asks for and the runtime of `handler` cannot do. `filtered`: it has a seccomp profile.
    pub fn check(
        &self,
        handler: &str,
        container: ContainerRef<'_>,
        (spec, filtered): (&LaunchSpec, bool),
        version: CgroupVersion,
    ) -> Result<(), ConfigError> {
        let path = container.path();
        let lacks = |field: &str, what: &str| {
            let field = if field.is_empty() { path.clone() } else { format!("{path}.{field}") };
            Err(ConfigError::create(field, format!("runtime handler {handler:?} does not support {what}")))
        };
        let (number, supported) = match version {
            CgroupVersion::V1 => (1, self.cgroups[0]),
            CgroupVersion::V2 => (2, self.cgroups[1]),
        };
        if !supported {
            return lacks("", &format!("cgroups of version {number}, which this node has"));
        }
        if spec.users.is_some() {
            return lacks("", "user namespaces (hostUsers: false)");
        }
        if filtered && !self.seccomp {
            return lacks("securityContext.seccompProfile", "seccomp profiles");
        }
        if spec.app_armor.is_some() && !self.app_armor {
            return lacks("securityContext.appArmorProfile", "AppArmor profiles");
        }
        let recursive = spec.mounts.iter().find(|mount| mount.recursive_readonly == RecursiveReadOnly::Enabled);
        if let Some(mount) = recursive.filter(|_| !self.recursive_read_only) {
            let volume = mount.volume.as_deref().unwrap_or_default();
            let message =
                format!("volume {volume:?} requested recursive read-only mode, but it is not supported by the runtime");
            return Err(ConfigError::config(format!("{path}.volumeMounts"), message));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Container;

    use super::*;
    use crate::{
        supervisor::spec::{IdRange, MountKind, MountSpec, Propagation},
        worker::testing::launch,
    };

    const RUNC: &str = r#"{
        "ociVersionMin": "1.0.0", "ociVersionMax": "1.0.2-dev", "mountOptions": ["ro", "rro"],
        "linux": {"namespaces": ["user"], "cgroup": {"v1": true, "v2": true}, "seccomp": {"enabled": true},
            "apparmor": {"enabled": true}, "selinux": {"enabled": true}}
    }"#;

    #[test]
    fn what_a_runtime_says_and_what_it_leaves_out() {
        let runc = Features::parse(RUNC);
        assert!(runc.seccomp && runc.app_armor && runc.recursive_read_only && runc.cgroups == [true, true]);
        assert!(!runc.user_namespaces, "without idmapped mounts owners would be wrong");
        let newer = RUNC.replace(r#""namespaces""#, r#""mountExtensions": {"idmap": {"enabled": true}}, "namespaces""#);
        assert!(Features::parse(&newer).user_namespaces);
        let none = Features::parse(r#"{"linux": {"seccomp": {"enabled": false}, "cgroup": {"v1": false}}}"#);
        assert!(!none.seccomp && none.app_armor && none.cgroups == [false, true]);
        assert_eq!(Features::parse("usage: runtime COMMAND"), Features::unknown());
    }

    #[test]
    fn what_it_cannot_do_is_refused_by_name() {
        let container = Container { name: "app".to_owned(), ..Container::default() };
        let refused = |features: &Features, spec: &LaunchSpec, filtered: bool| {
            let container = ContainerRef::App(0, &container);
            let refused = features.check("fast", container, (spec, filtered), CgroupVersion::V1);
            refused.err().map(|error| error.to_string())
        };
        let (all, plain) = (Features::parse(RUNC), launch("app", 0, 1));
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(refused(&all, &plain, true), None);
        let users = LaunchSpec { users: Some(IdRange { first: 65536, count: 65536 }), ..plain.clone() };
        assert_eq!(
            refused(&all, &users, false),
            some("spec.containers[0]: runtime handler \"fast\" does not support user namespaces (hostUsers: false)")
        );
        let blind = Features { seccomp: false, app_armor: false, recursive_read_only: false, ..all };
        assert_eq!(refused(&blind, &plain, false), None);
        assert_eq!(
            refused(&blind, &plain, true),
            some(
                "spec.containers[0].securityContext.seccompProfile: runtime handler \"fast\" does not support seccomp profiles"
            )
        );
        let labelled = LaunchSpec { app_armor: some("cri"), ..plain.clone() };
        assert!(refused(&blind, &labelled, false).unwrap().contains("appArmorProfile"));
        let mount = |recursive_readonly| MountSpec {
            target: "/data".into(),
            kind: MountKind::Bind { source: "/srv".into(), sub_path: None },
            readonly: true,
            recursive_readonly,
            nosuid: false,
            nodev: false,
            noexec: false,
            propagation: Propagation::Private,
            volume: some("data"),
        };
        let with = |recursive| LaunchSpec { mounts: vec![mount(recursive)], ..plain.clone() };
        assert_eq!(refused(&blind, &with(RecursiveReadOnly::IfPossible), false), None);
        assert_eq!(refused(&all, &with(RecursiveReadOnly::Enabled), false), None);
        assert!(
            refused(&blind, &with(RecursiveReadOnly::Enabled), false).unwrap().contains("volume \"data\" requested")
        );
        let modern = Features { cgroups: [false, true], ..all };
        assert!(refused(&modern, &plain, false).unwrap().ends_with("cgroups of version 1, which this node has"));
    }
}
