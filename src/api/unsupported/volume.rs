//! The kinds of volumes.

use k8s_openapi::api::core::v1::{
    CSIVolumeSource, ClusterTrustBundleProjection, ConfigMapVolumeSource, DownwardAPIVolumeSource,
    EmptyDirVolumeSource, EphemeralVolumeSource, HostPathVolumeSource, ImageVolumeSource, NFSVolumeSource,
    PersistentVolume, PersistentVolumeClaimSpec, PersistentVolumeClaimTemplate, PersistentVolumeClaimVolumeSource,
    PersistentVolumeSpec, ProjectedVolumeSource, SecretVolumeSource, Volume, VolumeProjection,
};

use super::Issues;

pub(super) fn check(volume: &Volume, path: &str, issues: &mut Issues) {
    let (kind, supported) = volume_kind(volume);
    if !supported {
        issues.refuse(format!("{path}.{kind}"), format!("volumes of the kind {kind} are not supported yet"));
    }
    // Every field of these is honoured.
    if let Some(source) = &volume.empty_dir {
        let EmptyDirVolumeSource { medium: _, size_limit: _ } = source;
    }
    if let Some(source) = &volume.host_path {
        let HostPathVolumeSource { path: _, type_: _ } = source;
    }
    if let Some(source) = &volume.image {
        let ImageVolumeSource { pull_policy: _, reference: _ } = source;
    }
    if let Some(source) = &volume.nfs {
        let NFSVolumeSource { path: _, read_only: _, server: _ } = source;
    }
    if let Some(source) = &volume.csi {
        let CSIVolumeSource { driver: _, fs_type: _, node_publish_secret_ref: _, read_only: _, volume_attributes: _ } =
            source;
    }
    if let Some(source) = &volume.persistent_volume_claim {
        let PersistentVolumeClaimVolumeSource { claim_name: _, read_only: _ } = source;
    }
    if let Some(EphemeralVolumeSource { volume_claim_template: Some(template) }) = &volume.ephemeral {
        let PersistentVolumeClaimTemplate { metadata: _, spec } = template;
        check_claim(spec, &format!("{path}.ephemeral.volumeClaimTemplate.spec"), issues);
    }
    check_content(volume, path, issues);
}

/// Volumes whose content comes from objects; all of them are honoured but for one source.
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
        if let Some(source) = cluster_trust_bundle {
            let ClusterTrustBundleProjection { label_selector: _, name: _, optional: _, path: _, signer_name: _ } =
                source;
        }
        issues.refuse_if(
            pod_certificate.is_some(),
            format!("{path}.podCertificate"),
            "static pods may not reference podcertificates: they are signed by way of an API server",
        );
    }
}

fn check_claim(spec: &PersistentVolumeClaimSpec, path: &str, issues: &mut Issues) {
    let PersistentVolumeClaimSpec {
        data_source,
        data_source_ref,
        // What a volume is chosen by.
        access_modes: _,
        resources: _,
        selector: _,
        storage_class_name: _,
        volume_attributes_class_name: _,
        volume_mode: _,
        volume_name: _,
    } = spec;
    const MESSAGE: &str = "there is nothing on this node that fills a volume from another source";
    issues.refuse_if(data_source.is_some(), format!("{path}.dataSource"), MESSAGE);
    issues.refuse_if(data_source_ref.is_some(), format!("{path}.dataSourceRef"), MESSAGE);
}

/// The kind of a persistent volume as its field is called; empty for one that names none.
pub fn persistent_volume_kind(volume: &PersistentVolume) -> &'static str {
    let Some(spec) = &volume.spec else { return "" };
    let PersistentVolumeSpec {
        // About any kind.
        access_modes: _,
        capacity: _,
        claim_ref: _,
        mount_options: _,
        node_affinity: _,
        persistent_volume_reclaim_policy: _,
        storage_class_name: _,
        volume_attributes_class_name: _,
        volume_mode: _,
        aws_elastic_block_store,
        azure_disk,
        azure_file,
        cephfs,
        cinder,
        csi,
        fc,
        flex_volume,
        flocker,
        gce_persistent_disk,
        glusterfs,
        host_path,
        iscsi,
        local,
        nfs,
        photon_persistent_disk,
        portworx_volume,
        quobyte,
        rbd,
        scale_io,
        storageos,
        vsphere_volume,
    } = spec;
    let kinds = [
        ("awsElasticBlockStore", aws_elastic_block_store.is_some()),
        ("azureDisk", azure_disk.is_some()),
        ("azureFile", azure_file.is_some()),
        ("cephfs", cephfs.is_some()),
        ("cinder", cinder.is_some()),
        ("csi", csi.is_some()),
        ("fc", fc.is_some()),
        ("flexVolume", flex_volume.is_some()),
        ("flocker", flocker.is_some()),
        ("gcePersistentDisk", gce_persistent_disk.is_some()),
        ("glusterfs", glusterfs.is_some()),
        ("hostPath", host_path.is_some()),
        ("iscsi", iscsi.is_some()),
        ("local", local.is_some()),
        ("nfs", nfs.is_some()),
        ("photonPersistentDisk", photon_persistent_disk.is_some()),
        ("portworxVolume", portworx_volume.is_some()),
        ("quobyte", quobyte.is_some()),
        ("rbd", rbd.is_some()),
        ("scaleIO", scale_io.is_some()),
        ("storageos", storageos.is_some()),
        ("vsphereVolume", vsphere_volume.is_some()),
    ];
    kinds.into_iter().find(|(_, set)| *set).map_or("", |(kind, _)| kind)
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
        ("fc", fc.is_some()),
        ("flexVolume", flex_volume.is_some()),
        ("flocker", flocker.is_some()),
        ("gcePersistentDisk", gce_persistent_disk.is_some()),
        ("gitRepo", git_repo.is_some()),
        ("glusterfs", glusterfs.is_some()),
        ("iscsi", iscsi.is_some()),
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
        ("csi", csi.is_some()),
        ("downwardAPI", downward_api.is_some()),
        ("emptyDir", empty_dir.is_some()),
        ("ephemeral", ephemeral.is_some()),
        ("hostPath", host_path.is_some()),
        ("image", image.is_some()),
        ("nfs", nfs.is_some()),
        ("persistentVolumeClaim", persistent_volume_claim.is_some()),
        ("projected", projected.is_some()),
        ("secret", secret.is_some()),
    ];
    (provided.into_iter().find(|(_, set)| *set).map_or("emptyDir", |(kind, _)| kind), true)
}
