//! One container of a pod, whichever of the three lists it stands in.

use k8s_openapi::api::core::v1::{
    Container, ContainerPort, EnvFromSource, EnvVar, EphemeralContainer, Lifecycle, Pod, ResourceRequirements,
    SecurityContext, VolumeDevice, VolumeMount,
};

/// A container of a pod.
#[derive(Debug, Clone, Copy)]
pub enum ContainerRef<'a> {
    /// `spec.initContainers[index]`.
    Init(usize, &'a Container),
    /// `spec.containers[index]`.
    App(usize, &'a Container),
    /// `spec.ephemeralContainers[index]`: no resources, may join the PID namespace of another container.
    Ephemeral(usize, &'a EphemeralContainer),
}

/// The field `$field` of either structure.
macro_rules! field {
    ($self:ident.$field:ident) => {
        match $self {
            ContainerRef::Init(_, container) | ContainerRef::App(_, container) => &container.$field,
            ContainerRef::Ephemeral(_, container) => &container.$field,
        }
    };
}

impl<'a> ContainerRef<'a> {
    /// The container called `name`; names are unique over the three lists.
    pub fn find(pod: &'a Pod, name: &str) -> Option<ContainerRef<'a>> {
        ContainerRef::all(pod).find(|container| container.name() == name)
    }

    /// Every container, init containers first.
    pub fn all(pod: &'a Pod) -> impl Iterator<Item = ContainerRef<'a>> {
        let spec = pod.spec.as_ref();
        let init = spec.and_then(|spec| spec.init_containers.as_ref()).into_iter().flatten().enumerate();
        let app = spec.into_iter().flat_map(|spec| &spec.containers).enumerate();
        let ephemeral = spec.and_then(|spec| spec.ephemeral_containers.as_ref()).into_iter().flatten().enumerate();
        init.map(|(index, container)| ContainerRef::Init(index, container))
            .chain(app.map(|(index, container)| ContainerRef::App(index, container)))
            .chain(ephemeral.map(|(index, container)| ContainerRef::Ephemeral(index, container)))
    }

    /// Path of the container from the pod's root.
    pub fn path(self) -> String {
        match self {
            ContainerRef::Init(index, _) => format!("spec.initContainers[{index}]"),
            ContainerRef::App(index, _) => format!("spec.containers[{index}]"),
            ContainerRef::Ephemeral(index, _) => format!("spec.ephemeralContainers[{index}]"),
        }
    }

    /// Its name.
    pub fn name(self) -> &'a str {
        field!(self.name)
    }

    /// The image as it is written in the pod.
    pub fn image(self) -> &'a str {
        field!(self.image).as_deref().unwrap_or_default()
    }

    /// When the image is pulled; `None` when not set.
    pub fn image_pull_policy(self) -> Option<&'a str> {
        field!(self.image_pull_policy).as_deref()
    }

    /// Replaces the image's entry point; empty when not set.
    pub fn command(self) -> &'a [String] {
        field!(self.command).as_deref().unwrap_or_default()
    }

    /// Replaces the image's command; empty when not set.
    pub fn args(self) -> &'a [String] {
        field!(self.args).as_deref().unwrap_or_default()
    }

    /// Variables.
    pub fn env(self) -> &'a [EnvVar] {
        field!(self.env).as_deref().unwrap_or_default()
    }

    /// Sources of many variables.
    pub fn env_from(self) -> &'a [EnvFromSource] {
        field!(self.env_from).as_deref().unwrap_or_default()
    }

    /// Working directory; empty when not set.
    pub fn working_dir(self) -> &'a str {
        field!(self.working_dir).as_deref().unwrap_or_default()
    }

    /// Hooks and stop signal.
    pub fn lifecycle(self) -> Option<&'a Lifecycle> {
        field!(self.lifecycle).as_ref()
    }

    /// Requests and limits.
    pub fn resources(self) -> Option<&'a ResourceRequirements> {
        field!(self.resources).as_ref()
    }

    /// Security context of the container alone.
    pub fn security_context(self) -> Option<&'a SecurityContext> {
        field!(self.security_context).as_ref()
    }

    /// Ports it names.
    pub fn ports(self) -> &'a [ContainerPort] {
        field!(self.ports).as_deref().unwrap_or_default()
    }

    /// Volumes it sees.
    pub fn volume_mounts(self) -> &'a [VolumeMount] {
        field!(self.volume_mounts).as_deref().unwrap_or_default()
    }

    /// Block volumes it has as devices.
    pub fn volume_devices(self) -> &'a [VolumeDevice] {
        field!(self.volume_devices).as_deref().unwrap_or_default()
    }

    /// Where the container finds the file for its last words; empty: nowhere.
    pub fn termination_message_path(self) -> &'a str {
        field!(self.termination_message_path).as_deref().unwrap_or("/dev/termination-log")
    }

    /// Where its last words are looked for besides.
    pub fn termination_message_policy(self) -> Option<&'a str> {
        field!(self.termination_message_policy).as_deref()
    }

    /// Has a terminal.
    pub fn tty(self) -> bool {
        *field!(self.tty) == Some(true)
    }

    /// Keeps standard input open.
    pub fn stdin(self) -> bool {
        *field!(self.stdin) == Some(true)
    }

    /// Closes it after the first attach.
    pub fn stdin_once(self) -> bool {
        *field!(self.stdin_once) == Some(true)
    }

    /// The container whose PID namespace an ephemeral container joins.
    pub fn target(self) -> Option<&'a str> {
        match self {
            ContainerRef::Ephemeral(_, container) => {
                container.target_container_name.as_deref().filter(|name| !name.is_empty())
            }
            _ => None,
        }
    }
}
