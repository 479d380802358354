//! A volume as a driver is asked for it, and what the CSIDriver object of its driver has to say: pure.

use std::{collections::BTreeMap, fmt};

use aws_lc_rs::digest::{SHA256, digest};
use k8s_openapi::api::{
    core::v1::{CSIVolumeSource, PersistentVolume, Pod},
    storage::v1::CSIDriverSpec,
};

use super::{
    client::Capabilities,
    messages::{AccessMode, AccessType, BlockVolume, MountVolume, VolumeCapability, access_mode},
};
use crate::api::references::service_account;

/// How long a volume lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lifecycle {
    /// A PersistentVolume.
    Persistent,
    /// Written into the pod, made for it and gone with it.
    Ephemeral,
}

impl Lifecycle {
    /// The API's word.
    pub fn as_str(self) -> &'static str {
        match self {
            Lifecycle::Persistent => "Persistent",
            Lifecycle::Ephemeral => "Ephemeral",
        }
    }
}

/// Which secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretName {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
}

impl fmt::Display for SecretName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// A volume of a pod that a driver provides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CsiVolume {
    /// What its directories are called: the name of the PersistentVolume, or of the pod's volume.
    pub name: String,
    /// Name of the driver.
    pub driver: String,
    /// What the driver calls it.
    pub handle: String,
    /// How long it lives.
    pub lifecycle: Lifecycle,
    /// Empty: the driver chooses.
    pub fs_type: String,
    /// `volumeAttributes`.
    pub attributes: BTreeMap<String, String>,
    /// For NodeStageVolume.
    pub stage_secret: Option<SecretName>,
    /// For NodePublishVolume.
    pub publish_secret: Option<SecretName>,
    /// Of a PersistentVolume.
    pub access_modes: Vec<String>,
    /// Of a PersistentVolume.
    pub mount_options: Vec<String>,
    /// Nobody may write.
    pub read_only: bool,
    /// It is a device.
    pub block: bool,
}

impl CsiVolume {
    /// A volume that is written into the pod.
    pub fn inline(pod: &Pod, name: &str, source: &CSIVolumeSource) -> CsiVolume {
        let metadata = &pod.metadata;
        let uid = metadata.uid.as_deref().unwrap_or_default();
        let publish_secret = source.node_publish_secret_ref.as_ref().map(|secret| SecretName {
            namespace: metadata.namespace.clone().unwrap_or_default(),
            name: secret.name.clone(),
        });
        CsiVolume {
            name: name.to_owned(),
            driver: source.driver.clone(),
            handle: format!("csi-{}", sha256(&format!("{uid}{name}"))),
            lifecycle: Lifecycle::Ephemeral,
            fs_type: source.fs_type.clone().unwrap_or_default(),
            attributes: source.volume_attributes.clone().unwrap_or_default(),
            stage_secret: None,
            publish_secret,
            access_modes: Vec::new(),
            mount_options: Vec::new(),
            read_only: source.read_only == Some(true),
            block: false,
        }
    }

    /// A volume that is claimed, by somebody who may only read it if `read_only`. `None` if it is of another kind.
    pub fn persistent(volume: &PersistentVolume, read_only: bool) -> Option<CsiVolume> {
        let spec = volume.spec.as_ref()?;
        let source = spec.csi.as_ref()?;
        let secret = |reference: &Option<k8s_openapi::api::core::v1::SecretReference>| {
            reference.as_ref().map(|reference| SecretName {
                namespace: reference.namespace.clone().unwrap_or_default(),
                name: reference.name.clone().unwrap_or_default(),
            })
        };
        Some(CsiVolume {
            name: volume.metadata.name.clone().unwrap_or_default(),
            driver: source.driver.clone(),
            handle: source.volume_handle.clone(),
            lifecycle: Lifecycle::Persistent,
            fs_type: source.fs_type.clone().unwrap_or_default(),
            attributes: source.volume_attributes.clone().unwrap_or_default(),
            stage_secret: secret(&source.node_stage_secret_ref),
            publish_secret: secret(&source.node_publish_secret_ref),
            access_modes: spec.access_modes.clone().unwrap_or_default(),
            mount_options: spec.mount_options.clone().unwrap_or_default(),
            read_only: read_only || source.read_only == Some(true),
            block: spec.volume_mode.as_deref() == Some("Block"),
        })
    }

    /// What stands for the handle in a path.
    pub fn digest(&self) -> String {
        sha256(&self.handle)
    }

    /// What its VolumeAttachment to a node would be called (upstream's `getAttachmentName`).
    pub fn attachment(&self, node: &str) -> String {
        format!("csi-{}", sha256(&format!("{}{}{node}", self.handle, self.driver)))
    }

    /// Whether a driver that says `spec` of itself provides volumes that live so long.
    ///
    /// # Errors
    /// In upstream's words.
    pub fn has_its_lifecycle(&self, spec: Option<&CSIDriverSpec>) -> Result<(), String> {
        let (mode, driver) = (self.lifecycle.as_str(), &self.driver);
        let Some(spec) = spec else {
            return match self.lifecycle {
                Lifecycle::Persistent => Ok(()),
                Lifecycle::Ephemeral => {
                    Err(format!("volume mode {mode:?} not supported by driver {driver} (no CSIDriver object)"))
                }
            };
        };
        let modes = spec.volume_lifecycle_modes.as_deref().unwrap_or_default();
        match modes.iter().any(|known| known == mode) {
            true => Ok(()),
            false => {
                let modes = modes.iter().map(|known| format!("{known:?}")).collect::<Vec<_>>().join(" ");
                Err(format!("volume mode {mode:?} not supported by driver {driver} (only supports [{modes}])"))
            }
        }
    }

    /// Whether somebody would have to attach it to the node first. A driver nothing is known of is taken for one that
    /// needs that, as upstream.
    pub fn needs_attachment(&self, spec: Option<&CSIDriverSpec>) -> bool {
        self.lifecycle == Lifecycle::Persistent && spec.and_then(|spec| spec.attach_required) != Some(false)
    }

    /// Whether its files are given to the pod's fsGroup after it was published: upstream's `supportsFSGroup`. Not asked of
    /// a driver that sees to that itself.
    pub fn is_given_to_group(&self, spec: Option<&CSIDriverSpec>) -> bool {
        if self.read_only || self.block {
            return false;
        }
        match spec.and_then(|spec| spec.fs_group_policy.as_deref()) {
            Some("None") => false,
            Some("File") => true,
            _ => {
                let once = |mode: &String| mode == "ReadWriteOnce" || mode == "ReadWriteOncePod";
                let written_once = self.lifecycle == Lifecycle::Ephemeral || self.access_modes.iter().any(once);
                !self.fs_type.is_empty() && written_once
            }
        }
    }

    /// `volumeAttributes`, and what the driver wants to know of the pod.
    pub fn context(&self, pod: &Pod, spec: Option<&CSIDriverSpec>) -> BTreeMap<String, String> {
        let mut context = self.attributes.clone();
        if spec.and_then(|spec| spec.pod_info_on_mount) == Some(true) {
            let metadata = &pod.metadata;
            let text = |field: &Option<String>| field.clone().unwrap_or_default();
            let told = [
                ("pod.name", text(&metadata.name)),
                ("pod.namespace", text(&metadata.namespace)),
                ("pod.uid", text(&metadata.uid)),
                ("serviceAccount.name", service_account(pod).to_owned()),
                ("ephemeral", (self.lifecycle == Lifecycle::Ephemeral).to_string()),
            ];
            context.extend(told.map(|(key, value)| (format!("csi.storage.k8s.io/{key}"), value)));
        }
        context
    }

    /// How it is to be used, by pods of the group `group` if the driver wants to know.
    pub fn capability(&self, driver: Capabilities, group: Option<u32>) -> VolumeCapability {
        let access_type = match self.block {
            true => AccessType::Block(BlockVolume {}),
            false => AccessType::Mount(MountVolume {
                fs_type: self.fs_type.clone(),
                mount_flags: self.mount_options.clone(),
                volume_mount_group: group
                    .filter(|_| driver.mount_group)
                    .map(|group| group.to_string())
                    .unwrap_or_default(),
            }),
        };
        let first = self.access_modes.first().map_or("ReadWriteOnce", String::as_str);
        let mode = match (first, driver.single_node_multi_writer) {
            ("ReadWriteOnce", true) => access_mode::SINGLE_NODE_MULTI_WRITER,
            ("ReadWriteOncePod", true) => access_mode::SINGLE_NODE_SINGLE_WRITER,
            ("ReadWriteOnce" | "ReadWriteOncePod", false) => access_mode::SINGLE_NODE_WRITER,
            ("ReadOnlyMany", _) => access_mode::MULTI_NODE_READER_ONLY,
            ("ReadWriteMany", _) => access_mode::MULTI_NODE_MULTI_WRITER,
            _ => access_mode::UNKNOWN,
        };
        VolumeCapability { access_type: Some(access_type), access_mode: Some(AccessMode { mode }) }
    }
}

fn sha256(text: &str) -> String {
    digest(&SHA256, text.as_bytes()).as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn with(base: Value, change: Value) -> Value {
        let mut base = base;
        for (key, value) in change.as_object().unwrap() {
            base[key] = value.clone();
        }
        base
    }

    fn persistent(change: Value) -> CsiVolume {
        let csi = json!({"driver": "d.example", "volumeHandle": "h", "fsType": "ext4"});
        let spec = json!({"accessModes": ["ReadWriteOnce"], "csi": csi});
        let volume = json!({"metadata": {"name": "pv"}, "spec": with(spec, change)});
        CsiVolume::persistent(&serde_json::from_value(volume).unwrap(), false).unwrap()
    }

    fn inline() -> CsiVolume {
        let pod = serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"}})).unwrap();
        let source = json!({"driver": "d.example", "nodePublishSecretRef": {"name": "s"}});
        CsiVolume::inline(&pod, "v", &serde_json::from_value(source).unwrap())
    }

    fn driver(spec: Value) -> CSIDriverSpec {
        serde_json::from_value(spec).unwrap()
    }

    #[test]
    fn a_volume_of_the_pods_own_has_a_handle_made_of_both_names() {
        let volume = inline();
        // By sha256sum(1).
        assert_eq!(volume.handle, "csi-e6184ce10e266134fdcfa401e8f1a95005bcd4f18d16b62b757323e2833fe9a9");
        assert_eq!(
            persistent(json!({})).attachment("node"),
            "csi-5de233dd175fe234f3f5acc94a3962888ee534359ee98a4be25560afdb3b0b1a"
        );
        assert_eq!(volume.publish_secret.unwrap().to_string(), "n/s");
    }

    #[test]
    fn a_driver_provides_what_it_says() {
        let error = inline().has_its_lifecycle(None).unwrap_err();
        assert_eq!(error, "volume mode \"Ephemeral\" not supported by driver d.example (no CSIDriver object)");
        assert_eq!(persistent(json!({})).has_its_lifecycle(None), Ok(()));
        let only = driver(json!({"volumeLifecycleModes": ["Persistent"]}));
        let error = inline().has_its_lifecycle(Some(&only)).unwrap_err();
        assert!(error.ends_with("(only supports [\"Persistent\"])"), "{error}");
        let both = driver(json!({"volumeLifecycleModes": ["Persistent", "Ephemeral"]}));
        assert_eq!(inline().has_its_lifecycle(Some(&both)), Ok(()));
    }

    #[test]
    fn who_has_to_attach_is_as_upstream() {
        assert!(persistent(json!({})).needs_attachment(None), "nothing is known of the driver");
        assert!(persistent(json!({})).needs_attachment(Some(&driver(json!({"attachRequired": true})))));
        assert!(!persistent(json!({})).needs_attachment(Some(&driver(json!({"attachRequired": false})))));
        assert!(!inline().needs_attachment(None));
    }

    #[test]
    fn a_group_gets_what_the_policy_says() {
        let csi = json!({"driver": "d.example", "volumeHandle": "h"});
        let given =
            |volume: CsiVolume, policy: &str| volume.is_given_to_group(Some(&driver(json!({"fsGroupPolicy": policy}))));
        let by_type = "ReadWriteOnceWithFSType";
        for (volume, policy, expected) in [
            (persistent(json!({})), by_type, true),
            (persistent(json!({"accessModes": ["ReadWriteOncePod"]})), by_type, true),
            (persistent(json!({"accessModes": ["ReadWriteMany"]})), by_type, false),
            (persistent(json!({"csi": csi})), by_type, false),
            (persistent(json!({"csi": csi})), "File", true),
            (persistent(json!({})), "None", false),
            (persistent(json!({"volumeMode": "Block"})), "File", false),
            (CsiVolume { read_only: true, ..persistent(json!({})) }, "File", false),
            (inline(), by_type, false),
            (CsiVolume { fs_type: "ext4".to_owned(), ..inline() }, by_type, true),
        ] {
            assert_eq!(given(volume.clone(), policy), expected, "{policy} {volume:?}");
        }
        assert!(persistent(json!({})).is_given_to_group(None));
    }

    #[test]
    fn the_pod_is_told_of_when_asked_for() {
        let pod: Pod =
            serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"}})).unwrap();
        let volume = CsiVolume { attributes: [("a".to_owned(), "b".to_owned())].into(), ..inline() };
        assert_eq!(volume.context(&pod, None).len(), 1);
        let context = volume.context(&pod, Some(&driver(json!({"podInfoOnMount": true}))));
        let told: Vec<_> = context.iter().map(|(key, value)| format!("{key}={value}")).collect();
        let expected = [
            "a=b",
            "csi.storage.k8s.io/ephemeral=true",
            "csi.storage.k8s.io/pod.name=p",
            "csi.storage.k8s.io/pod.namespace=n",
            "csi.storage.k8s.io/pod.uid=u",
            "csi.storage.k8s.io/serviceAccount.name=default",
        ];
        assert_eq!(told, expected);
    }

    #[test]
    fn access_modes_are_mapped_as_upstream_maps_them() {
        let mode = |modes: Value, single_node_multi_writer| {
            let capabilities = Capabilities { single_node_multi_writer, ..Capabilities::default() };
            persistent(json!({"accessModes": modes})).capability(capabilities, None).access_mode.unwrap().mode
        };
        assert_eq!(mode(json!(["ReadWriteOnce"]), false), 1);
        assert_eq!(mode(json!(["ReadWriteOnce"]), true), 7);
        assert_eq!(mode(json!(["ReadWriteOncePod"]), false), 1);
        assert_eq!(mode(json!(["ReadWriteOncePod"]), true), 6);
        assert_eq!(mode(json!(["ReadOnlyMany", "ReadWriteOnce"]), true), 3);
        assert_eq!(mode(json!(["ReadWriteMany"]), false), 5);
    }

    #[test]
    fn the_group_goes_to_drivers_that_want_it() {
        let group = |mount_group| {
            let capabilities = Capabilities { mount_group, ..Capabilities::default() };
            match persistent(json!({})).capability(capabilities, Some(7)).access_type {
                Some(AccessType::Mount(mount)) => mount.volume_mount_group,
                _ => panic!("a mount"),
            }
        };
        assert_eq!((group(true).as_str(), group(false).as_str()), ("7", ""));
        let block = persistent(json!({"volumeMode": "Block"})).capability(Capabilities::default(), None);
        assert_eq!(block.access_type, Some(AccessType::Block(BlockVolume {})));
    }
}
