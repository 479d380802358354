//! Builds layers, images and archives for the tests of this module.

use std::{
    io::{Cursor, Write},
    path::Path,
};

use serde_json::{Value, json};
use tar::{Builder, EntryType, Header};

use super::{
    config::{ImageConfig, Platform, RetryPolicy},
    digest::Digest,
    manifest::{OCI_CONFIG, OCI_MANIFEST},
    unpack::Ownership,
};

/// A modification time that is not now.
pub(super) const MTIME: u64 = 1_234_567_890;

/// A tar archive being written, with names as given, however bad.
pub(super) struct LayerTar {
    builder: Builder<Vec<u8>>,
}

impl LayerTar {
    pub(super) fn new() -> LayerTar {
        LayerTar { builder: Builder::new(Vec::new()) }
    }

    /// Appends an entry; names of up to 100 bytes go into the header as they are.
    pub(super) fn entry(mut self, kind: EntryType, name: &str, link: &str, mode: u32, data: &[u8]) -> LayerTar {
        let mut header = Header::new_gnu();
        {
            let old = header.as_old_mut();
            old.name[..name.len()].copy_from_slice(name.as_bytes());
            old.linkname[..link.len()].copy_from_slice(link.as_bytes());
        }
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_size(data.len() as u64);
        header.set_mtime(MTIME);
        header.set_uid(0);
        header.set_gid(0);
        header.set_cksum();
        self.builder.append(&header, data).unwrap();
        self
    }

    pub(super) fn file(self, name: &str, data: &[u8]) -> LayerTar {
        self.entry(EntryType::Regular, name, "", 0o644, data)
    }

    pub(super) fn directory(self, name: &str, mode: u32) -> LayerTar {
        self.entry(EntryType::Directory, name, "", mode, b"")
    }

    pub(super) fn symlink(self, name: &str, target: &str) -> LayerTar {
        self.entry(EntryType::Symlink, name, target, 0o777, b"")
    }

    pub(super) fn hardlink(self, name: &str, target: &str) -> LayerTar {
        self.entry(EntryType::Link, name, target, 0o644, b"")
    }

    /// Puts PAX records before the next entry.
    pub(super) fn pax(mut self, records: &[(&str, &[u8])]) -> LayerTar {
        self.builder.append_pax_extensions(records.iter().copied()).unwrap();
        self
    }

    /// Appends with a header made elsewhere.
    pub(super) fn raw(mut self, header: &Header, data: &[u8]) -> LayerTar {
        self.builder.append(header, data).unwrap();
        self
    }

    pub(super) fn finish(self) -> Vec<u8> {
        self.builder.into_inner().unwrap()
    }
}

pub(super) fn gzip(data: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

pub(super) fn zstd(data: &[u8]) -> Vec<u8> {
    zstd::encode_all(Cursor::new(data), 1).unwrap()
}

/// An image in pieces.
#[derive(Clone)]
pub(super) struct TestImage {
    pub config: Vec<u8>,
    pub manifest: Vec<u8>,
    /// As transferred.
    pub layers: Vec<Vec<u8>>,
    pub tars: Vec<Vec<u8>>,
}

impl TestImage {
    /// `layers`: the archive and its transferred form, bottom first.
    pub(super) fn new(layers: Vec<(Vec<u8>, Vec<u8>)>) -> TestImage {
        let (tars, layers): (Vec<_>, Vec<_>) = layers.into_iter().unzip();
        let platform = Platform::host();
        let config = json!({
            "os": platform.os, "architecture": platform.architecture,
            "config": {"Cmd": ["/bin/app"], "Env": ["PATH=/bin"], "User": "nobody"},
            "rootfs": {"type": "layers", "diff_ids": tars.iter().map(|tar| Digest::of(tar)).collect::<Vec<_>>()},
        });
        TestImage::with_config(config.to_string().into_bytes(), tars, layers)
    }

    /// Two layers, gzip and zstd.
    pub(super) fn simple(marker: &str) -> TestImage {
        let base = LayerTar::new().directory("bin/", 0o755).file("bin/app", b"#!/bin/sh\n").finish();
        let top = LayerTar::new().file("marker", marker.as_bytes()).finish();
        let layers = vec![(base.clone(), gzip(&base)), (top.clone(), zstd(&top))];
        TestImage::new(layers)
    }

    pub(super) fn with_config(config: Vec<u8>, tars: Vec<Vec<u8>>, layers: Vec<Vec<u8>>) -> TestImage {
        let descriptors: Vec<Value> =
            layers.iter().map(|layer| descriptor("application/vnd.oci.image.layer.v1.tar+gzip", layer)).collect();
        let manifest = json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST,
            "config": descriptor(OCI_CONFIG, &config), "layers": descriptors});
        TestImage { manifest: manifest.to_string().into_bytes(), config, layers, tars }
    }

    pub(super) fn id(&self) -> String {
        Digest::of(&self.config).to_string()
    }

    pub(super) fn digest(&self) -> Digest {
        Digest::of(&self.manifest)
    }

    /// The members of an OCI layout with this image under `name` (the `ref.name` annotation).
    pub(super) fn layout(&self, name: &str) -> Vec<(String, Vec<u8>)> {
        let mut entry = descriptor(OCI_MANIFEST, &self.manifest);
        entry["annotations"] = json!({"org.opencontainers.image.ref.name": name});
        let index = json!({"schemaVersion": 2, "manifests": [entry]});
        let mut members = vec![
            ("oci-layout".to_owned(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec()),
            ("index.json".to_owned(), index.to_string().into_bytes()),
        ];
        for blob in self.layers.iter().chain([&self.manifest, &self.config]) {
            members.push((format!("blobs/sha256/{}", Digest::of(blob).hex()), blob.clone()));
        }
        members
    }

    /// The members of a docker-archive with this image under `name`.
    pub(super) fn docker_archive(&self, name: &str) -> Vec<(String, Vec<u8>)> {
        let layers: Vec<String> = (0..self.tars.len()).map(|number| format!("{number}/layer.tar")).collect();
        let config = format!("{}.json", Digest::of(&self.config).hex());
        let manifest = json!([{"Config": config, "RepoTags": [name], "Layers": layers}]);
        let mut members: Vec<(String, Vec<u8>)> = layers.into_iter().zip(self.tars.iter().cloned()).collect();
        members.push((config, self.config.clone()));
        members.push(("manifest.json".to_owned(), manifest.to_string().into_bytes()));
        members
    }
}

pub(super) fn descriptor(media_type: &str, content: &[u8]) -> Value {
    json!({"mediaType": media_type, "digest": Digest::of(content), "size": content.len()})
}

pub(super) fn tar_of(members: &[(String, Vec<u8>)]) -> Vec<u8> {
    members.iter().fold(LayerTar::new(), |tar, (name, data)| tar.file(name, data)).finish()
}

pub(super) fn write_tree(directory: &Path, members: &[(String, Vec<u8>)]) {
    for (name, data) in members {
        let path = directory.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, data).unwrap();
    }
}

/// Settings under which nothing needs root or waits for long.
pub(super) fn settings() -> ImageConfig {
    ImageConfig {
        ownership: Ownership::Ignore,
        progress_timeout: std::time::Duration::from_millis(500),
        retry: RetryPolicy {
            attempts: 3,
            base: std::time::Duration::from_millis(1),
            max: std::time::Duration::from_millis(20),
        },
        ..ImageConfig::default()
    }
}
