//! The kinds of volumes.

use k8s_openapi::api::core::v1::{
    ConfigMapVolumeSource, DownwardAPIVolumeSource, EmptyDirVolumeSource, HostPathVolumeSource, ProjectedVolumeSource,
    SecretVolumeSource, Volume, VolumeProjection,
};

use super::Issues;

pub(super) fn check(volume: &Volume, path: &str, issues: &mut Issues) {
    let (kind, supported) = volume_kind(volume);
    if !supported {
        issues.refuse(format!("{path}.{kind}"), format!("volumes of the kind {kind} are not supported yet"));
    }
    if let Some(EmptyDirVolumeSource { medium, size_limit }) = &volume.empty_dir {
        let medium = medium.as_deref().unwrap_or_default();
        issues.refuse_if(
            medium.starts_with("HugePages"),
            format!("{path}.emptyDir.medium"),
            "huge pages as a medium are not supported yet",
        );
        if medium.is_empty() && size_limit.is_some() {
            issues.warn(format!("{path}.emptyDir.sizeLimit"), "is enforced for medium Memory only");
        }
    }
    if let Some(source) = &volume.host_path {
        // Both are honoured.
        let HostPathVolumeSource { path: _, type_: _ } = source;
    }
    check_content(volume, path, issues);
}

/// Volumes whose content comes from objects; all of them is honoured but for two sources.
fn check_content(volume: &Volume, path: &str, issues: &mut Issues) {
    if let Some(source) = &volume.config_map {
        let ConfigMapVolumeSource { default_mode: _, items: _, name: _, optional: _ } = source;
    }
    if let Some(source) = &volume.secret {
        let SecretVolumeSource { default_mode: _, items: _, optional: _, secret_name: _ } = source;
    }
    if let Some(source) = &volume.downward_api {
        let DownwardAPIVolumeSource { default_mode: _, items: _ } = source;
    }
    let Some(ProjectedVolumeSource { default_mode: _, sources }) = &volume.projected else { return };
    for (index, source) in sources.iter().flatten().enumerate() {
        let VolumeProjection {
            cluster_trust_bundle,
            pod_certificate,
            config_map: _,
            downward_api: _,
            secret: _,
            service_account_token: _,
        } = source;
        let path = format!("{path}.projected.sources[{index}]");
        issues.refuse_if(
            cluster_trust_bundle.is_some(),
            format!("{path}.clusterTrustBundle"),
            "trust bundles are not supported yet",
        );
        issues.refuse_if(
            pod_certificate.is_some(),
            format!("{path}.podCertificate"),
            "certificates of pods are not supported yet",
        );
    }
}

/// The kind of a volume as its field is called, and whether berth can provide it. A volume that names no kind is
/// an emptyDir, as upstream.
pub fn volume_kind(volume: &Volume) -> (&'static str, bool) {
    let Volume {
        name: _,
        empty_dir,
        host_path,
        aws_elastic_block_store,
        azure_disk,
        azure_file,
        cephfs,
        cinder,
        config_map,
        csi,
        downward_api,
        ephemeral,
        fc,
        flex_volume,
        flocker,
        gce_persistent_disk,
        git_repo,
        glusterfs,
        image,
        iscsi,
        nfs,
        persistent_volume_claim,
        photon_persistent_disk,
        portworx_volume,
        projected,
        quobyte,
        rbd,
        scale_io,
        secret,
        storageos,
        vsphere_volume,
    } = volume;
    let others = [
        ("awsElasticBlockStore", aws_elastic_block_store.is_some()),
        ("azureDisk", azure_disk.is_some()),
        ("azureFile", azure_file.is_some()),
        ("cephfs", cephfs.is_some()),
        ("cinder", cinder.is_some()),
        ("csi", csi.is_some()),
        ("ephemeral", ephemeral.is_some()),
        ("fc", fc.is_some()),
        ("flexVolume", flex_volume.is_some()),
        ("flocker", flocker.is_some()),
        ("gcePersistentDisk", gce_persistent_disk.is_some()),
        ("gitRepo", git_repo.is_some()),
        ("glusterfs", glusterfs.is_some()),
        ("image", image.is_some()),
        ("iscsi", iscsi.is_some()),
        ("nfs", nfs.is_some()),
        ("persistentVolumeClaim", persistent_volume_claim.is_some()),
        ("photonPersistentDisk", photon_persistent_disk.is_some()),
        ("portworxVolume", portworx_volume.is_some()),
        ("quobyte", quobyte.is_some()),
        ("rbd", rbd.is_some()),
        ("scaleIO", scale_io.is_some()),
        ("storageos", storageos.is_some()),
        ("vsphereVolume", vsphere_volume.is_some()),
    ];
    if let Some((kind, _)) = others.into_iter().find(|(_, set)| *set) {
        return (kind, false);
    }
    let provided = [
        ("configMap", config_map.is_some()),
        ("downwardAPI", downward_api.is_some()),
        ("emptyDir", empty_dir.is_some()),
        ("hostPath", host_path.is_some()),
        ("projected", projected.is_some()),
        ("secret", secret.is_some()),
    ];
    (provided.into_iter().find(|(_, set)| *set).map_or("emptyDir", |(kind, _)| kind), true)
}
