//! The security context of a container: what its own fields and the pod's come to.

use std::path::{Component, Path, PathBuf};

use k8s_openapi::api::core::v1::{Pod, PodSecurityContext, SeccompProfile, SecurityContext};

use super::{config_error::ConfigError, container_ref::ContainerRef};
use crate::{
    api::app_armor::{self, Profile},
    supervisor::spec::UserSpec,
};

/// Which system calls a container may make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SeccompChoice {
    /// All of them.
    Unconfined,
    /// Those of the runtime's default profile, which depends on the container's capabilities.
    RuntimeDefault,
    /// Those of a profile in OCI form at this absolute path.
    Localhost(PathBuf),
}

/// Upstream leaves labels out in silence where the kernel has no SELinux.
const SELINUX: &str = "SELinux labels are not set on this node: no process and no volume would have them";

/// The fields of a container go before those of its pod.
#[derive(Debug, Clone, Copy)]
pub struct Security<'a> {
    /// The container's name for messages, and `pod` as upstream writes it there.
    container: ContainerRef<'a>,
    pod: &'a Pod,
    own: Option<&'a SecurityContext>,
    of_pod: Option<&'a PodSecurityContext>,
    path: &'a str,
}

impl<'a> Security<'a> {
    /// The security context of `container`, whose path is `path`.
    pub fn new(pod: &'a Pod, container: ContainerRef<'a>, path: &'a str) -> Security<'a> {
        let of_pod = pod.spec.as_ref().and_then(|spec| spec.security_context.as_ref());
        Security { container, pod, own: container.security_context(), of_pod, path }
    }

    /// Refuses what this node cannot enforce or what contradicts itself.
    pub fn check(&self) -> Result<(), ConfigError> {
        let labels =
            self.own.and_then(|own| own.se_linux_options.as_ref()).or_else(|| self.of_pod?.se_linux_options.as_ref());
        if labels.is_some_and(|labels| *labels != Default::default()) {
            return Err(ConfigError::config(self.field("seLinuxOptions"), SELINUX));
        }
        if self.own.and_then(|own| own.allow_privilege_escalation) == Some(false) {
            let added = self.own.and_then(|own| own.capabilities.as_ref()?.add.as_ref());
            let field = self.field("allowPrivilegeEscalation");
            if self.privileged() {
                let message = "cannot set `allowPrivilegeEscalation` to false and `privileged` to true";
                return Err(ConfigError::config(field, message));
            }
            if added.is_some_and(|names| names.iter().any(|name| name == "CAP_SYS_ADMIN")) {
                let message = "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN";
                return Err(ConfigError::config(field, message));
            }
        }
        Ok(())
    }

    /// The AppArmor profile that it asks for. The default one is not for privileged containers, as upstream's runtimes
    /// have it.
    pub fn app_armor(&self) -> Option<Profile> {
        let profile = app_armor::profile(self.pod, self.container.name(), self.own)?;
        (profile != Profile::RuntimeDefault || !self.privileged()).then_some(profile)
    }

    /// Path of a field of the container's security context.
    pub fn field(&self, name: &str) -> String {
        format!("{}.securityContext.{name}", self.path)
    }

    /// Everything the agent may do, the container may.
    pub fn privileged(&self) -> bool {
        self.own.and_then(|own| own.privileged) == Some(true)
    }

    /// The image's files cannot be changed.
    pub fn read_only_root(&self) -> bool {
        self.own.and_then(|own| own.read_only_root_filesystem) == Some(true)
    }

    /// Whether parts of /proc and /sys are hidden or read-only.
    pub fn masked(&self) -> bool {
        !self.privileged() && self.own.and_then(|own| own.proc_mount.as_deref()) != Some("Unmasked")
    }

    /// `no_new_privs`: only when privilege escalation is ruled out in so many words.
    pub fn no_new_privs(&self) -> bool {
        self.own.and_then(|own| own.allow_privilege_escalation) == Some(false)
    }

    /// The seccomp profile. A privileged container has none, whatever it asks for, as upstream. `root` is the directory
    /// of Localhost profiles.
    pub fn seccomp(&self, default: bool, root: &Path) -> Result<SeccompChoice, ConfigError> {
        if self.privileged() {
            return Ok(SeccompChoice::Unconfined);
        }
        let own = self.own.and_then(|own| own.seccomp_profile.as_ref());
        let of_pod = self.of_pod.and_then(|of_pod| of_pod.seccomp_profile.as_ref());
        let (profile, field) = match (own, of_pod) {
            (Some(own), _) => (own, self.field("seccompProfile")),
            (None, Some(of_pod)) => (of_pod, "spec.securityContext.seccompProfile".to_owned()),
            (None, None) if default => return Ok(SeccompChoice::RuntimeDefault),
            (None, None) => return Ok(SeccompChoice::Unconfined),
        };
        let SeccompProfile { type_, localhost_profile } = profile;
        match type_.as_str() {
            "RuntimeDefault" => Ok(SeccompChoice::RuntimeDefault),
            "Unconfined" => Ok(SeccompChoice::Unconfined),
            "Localhost" => {
                let name = localhost_profile.as_deref().unwrap_or_default();
                let is_plain = |part: Component<'_>| matches!(part, Component::Normal(_) | Component::CurDir);
                if name.is_empty() || !Path::new(name).components().all(is_plain) {
                    let message = format!("{name:?} must be a relative path without '..'");
                    return Err(ConfigError::config(format!("{field}.localhostProfile"), message));
                }
                Ok(SeccompChoice::Localhost(root.join(name)))
            }
            other => Err(ConfigError::config(format!("{field}.type"), format!("unknown profile type {other:?}"))),
        }
    }

    /// Who the container runs as. `image_user` is the image's USER; it may name a user or group that only the image's
    /// own files know, so the last word is spoken inside the container.
    pub fn user(&self, image_user: &str) -> Result<UserSpec, ConfigError> {
        let id = |value: Option<i64>, name: &str| match value {
            None => Ok(None),
            Some(value) => u32::try_from(value).ok().filter(|id| *id <= i32::MAX as u32).map(Some).ok_or_else(|| {
                ConfigError::config(self.field(name), format!("{value} must be between 0 and 2147483647"))
            }),
        };
        let of_pod = self.of_pod;
        let uid = id(self.own.and_then(|own| own.run_as_user).or_else(|| of_pod?.run_as_user), "runAsUser")?;
        let gid = id(self.own.and_then(|own| own.run_as_group).or_else(|| of_pod?.run_as_group), "runAsGroup")?;
        let non_root = self.own.and_then(|own| own.run_as_non_root).or_else(|| of_pod?.run_as_non_root) == Some(true);
        if non_root {
            self.check_non_root(uid, image_user)?;
        }
        let mut groups: Vec<u32> = Vec::new();
        let supplemental = of_pod.and_then(|of_pod| of_pod.supplemental_groups.as_deref()).unwrap_or_default();
        let fs_group = of_pod.and_then(|of_pod| of_pod.fs_group);
        for group in supplemental.iter().copied().chain(fs_group) {
            let group = id(Some(group), "supplementalGroups")?.unwrap_or_default();
            if !groups.contains(&group) {
                groups.push(group);
            }
        }
        let strict = of_pod.and_then(|of_pod| of_pod.supplemental_groups_policy.as_deref()) == Some("Strict");
        // The group of USER belongs to the user of USER: with another user, it is that user's own in /etc/passwd.
        let image_user = if uid.is_some() { "" } else { image_user };
        Ok(UserSpec { image_user: image_user.to_owned(), uid, gid, groups, strict_groups: strict, non_root })
    }

    /// runAsNonRoot as far as it can be told from outside the container. The messages are upstream's.
    fn check_non_root(&self, uid: Option<u32>, image_user: &str) -> Result<(), ConfigError> {
        let metadata = &self.pod.metadata;
        let text = |value: &'a Option<String>| value.as_deref().unwrap_or_default();
        let whose = format!(
            "(pod: \"{}_{}({})\", container: {})",
            text(&metadata.name),
            text(&metadata.namespace),
            text(&metadata.uid),
            self.container.name()
        );
        let name = image_user.split(':').next().unwrap_or_default();
        let message = match (uid, name.parse::<u32>()) {
            (Some(0), _) => format!("container's runAsUser breaks non-root policy {whose}"),
            (Some(_), _) => return Ok(()),
            (None, Ok(0)) => format!("container has runAsNonRoot and image will run as root {whose}"),
            (None, Ok(_)) => return Ok(()),
            (None, Err(_)) if name.is_empty() => {
                format!("container has runAsNonRoot and image will run as root {whose}")
            }
            (None, Err(_)) => format!(
                "container has runAsNonRoot and image has non-numeric user ({name}), cannot verify user is non-root {whose}"
            ),
        };
        Err(ConfigError::config(self.field("runAsNonRoot"), message))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(of_pod: Value, own: Value) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "prod", "uid": "u-1"},
            "spec": {"securityContext": of_pod, "containers": [{"name": "app", "securityContext": own}]},
        }))
        .unwrap()
    }

    fn with<T>(of_pod: Value, own: Value, question: impl FnOnce(Security<'_>) -> T) -> T {
        let pod = pod(of_pod, own);
        question(Security::new(&pod, ContainerRef::find(&pod, "app").unwrap(), "spec.containers[0]"))
    }

    #[test]
    fn the_containers_user_goes_before_the_pods_and_the_pods_before_the_images() {
        let user = |of_pod: Value, own: Value| with(of_pod, own, |security| security.user("daemon:staff")).unwrap();
        let expected = UserSpec { image_user: "daemon:staff".to_owned(), ..UserSpec::default() };
        assert_eq!(user(json!({}), json!({})), expected);
        let expected = UserSpec { uid: Some(7), gid: Some(8), ..UserSpec::default() };
        assert_eq!(user(json!({"runAsUser": 1, "runAsGroup": 8}), json!({"runAsUser": 7})), expected);
        let expected = UserSpec { image_user: "daemon:staff".to_owned(), gid: Some(8), ..UserSpec::default() };
        assert_eq!(user(json!({"runAsGroup": 8}), json!({})), expected);
        let groups = json!({"supplementalGroups": [5, 6, 5], "fsGroup": 9, "supplementalGroupsPolicy": "Strict"});
        let user = user(groups, json!({}));
        assert_eq!((user.groups, user.strict_groups), (vec![5, 6, 9], true));
    }

    #[test]
    fn an_id_out_of_range_is_an_error() {
        let error = with(json!({}), json!({"runAsUser": -1}), |security| security.user("")).unwrap_err();
        assert_eq!(error.field, "spec.containers[0].securityContext.runAsUser");
        assert!(with(json!({"fsGroup": 1_i64 << 31}), json!({}), |security| security.user("")).is_err());
    }

    #[test]
    fn run_as_non_root_is_checked_as_far_as_it_can_be() {
        let message = |own: Value, image: &str| {
            with(json!({"runAsNonRoot": true}), own, |security| security.user(image)).err().map(|error| error.message)
        };
        let whose = "(pod: \"web_prod(u-1)\", container: app)";
        let root = format!("container has runAsNonRoot and image will run as root {whose}");
        assert_eq!(message(json!({}), ""), Some(root.clone()));
        assert_eq!(message(json!({}), "0"), Some(root.clone()));
        assert_eq!(message(json!({}), "0:7"), Some(root));
        assert_eq!(message(json!({}), "1000"), None);
        assert_eq!(message(json!({}), "1000:0"), None);
        let named = format!(
            "container has runAsNonRoot and image has non-numeric user (nobody), cannot verify user is non-root {whose}"
        );
        assert_eq!(message(json!({}), "nobody:x"), Some(named));
        assert_eq!(message(json!({"runAsUser": 5}), "nobody"), None);
        let own = format!("container's runAsUser breaks non-root policy {whose}");
        assert_eq!(message(json!({"runAsUser": 0}), "1000"), Some(own));
        assert_eq!(message(json!({"runAsNonRoot": false}), ""), None);
    }

    #[test]
    fn the_seccomp_profile_is_the_containers_the_pods_or_the_default() {
        let choice = |of_pod: Value, own: Value, default: bool| {
            with(of_pod, own, |security| security.seccomp(default, Path::new("/profiles")))
        };
        let profile = |kind: &str| json!({"seccompProfile": {"type": kind}});
        let local = |name: &str| json!({"seccompProfile": {"type": "Localhost", "localhostProfile": name}});
        assert_eq!(choice(json!({}), json!({}), false), Ok(SeccompChoice::Unconfined));
        assert_eq!(choice(json!({}), json!({}), true), Ok(SeccompChoice::RuntimeDefault));
        assert_eq!(choice(profile("RuntimeDefault"), json!({}), false), Ok(SeccompChoice::RuntimeDefault));
        assert_eq!(choice(profile("RuntimeDefault"), profile("Unconfined"), true), Ok(SeccompChoice::Unconfined));
        assert_eq!(choice(profile("RuntimeDefault"), json!({"privileged": true}), true), Ok(SeccompChoice::Unconfined));
        assert_eq!(
            choice(json!({}), local("a/b.json"), true),
            Ok(SeccompChoice::Localhost("/profiles/a/b.json".into()))
        );
        for name in ["", "/etc/x", "../x", "a/../../x"] {
            assert!(choice(local(name), json!({}), false).is_err(), "{name}");
        }
        assert!(choice(profile("Other"), json!({}), false).is_err());
    }

    #[test]
    fn contradictions_and_what_cannot_be_enforced_are_refused() {
        let field =
            |of_pod: Value, own: Value| with(of_pod, own, |security| security.check()).err().map(|error| error.field);
        assert_eq!(field(json!({}), json!({"allowPrivilegeEscalation": false})), None);
        let escalation = Some("spec.containers[0].securityContext.allowPrivilegeEscalation".to_owned());
        assert_eq!(field(json!({}), json!({"allowPrivilegeEscalation": false, "privileged": true})), escalation);
        let admin = json!({"allowPrivilegeEscalation": false, "capabilities": {"add": ["CAP_SYS_ADMIN"]}});
        assert_eq!(field(json!({}), admin), escalation);
        assert!(field(json!({}), json!({"seLinuxOptions": {"level": "s0"}})).is_some());
    }

    #[test]
    fn the_default_app_armor_profile_is_not_for_privileged_containers() {
        let profile = |of_pod: Value, own: Value| with(of_pod, own, |security| security.app_armor());
        let of_pod = json!({"appArmorProfile": {"type": "RuntimeDefault"}});
        assert_eq!(profile(of_pod.clone(), json!({})), Some(Profile::RuntimeDefault));
        assert_eq!(profile(of_pod.clone(), json!({"privileged": true})), None);
        let local = json!({"privileged": true, "appArmorProfile": {"type": "Localhost", "localhostProfile": "x"}});
        assert_eq!(profile(of_pod, local), Some(Profile::Localhost("x".to_owned())));
    }

    #[test]
    fn privileged_and_unmasked_containers_see_everything() {
        assert!(with(json!({}), json!({}), |security| security.masked()));
        assert!(!with(json!({}), json!({"privileged": true}), |security| security.masked()));
        assert!(!with(json!({}), json!({"procMount": "Unmasked"}), |security| security.masked()));
    }
}
