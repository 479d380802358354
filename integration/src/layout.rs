//! Images made for one test: busybox with a layer on top, as an OCI layout.

use std::{
    fs,
    path::{Path, PathBuf},
};

use aws_lc_rs::digest::{SHA256, digest};
use serde_json::{Value, json};

use crate::fixtures;

/// An image in the making. Paths are relative to its root.
pub struct Layout {
    layer: tar::Builder<Vec<u8>>,
    config: Value,
}

impl Default for Layout {
    fn default() -> Self {
        Layout::new()
    }
}

impl Layout {
    /// Busybox and nothing else.
    pub fn new() -> Layout {
        Layout { layer: tar::Builder::new(Vec::new()), config: json!({ "Env": ["PATH=/bin"] }) }
    }

    /// Adds a file.
    pub fn file(self, path: &str, mode: u32, content: &[u8]) -> Layout {
        self.entry(path, tar::EntryType::Regular, mode, "", content)
    }

    /// Adds a directory.
    pub fn directory(self, path: &str) -> Layout {
        self.entry(path, tar::EntryType::Directory, 0o755, "", b"")
    }

    /// Adds a symbolic link.
    pub fn link(self, path: &str, destination: &str) -> Layout {
        self.entry(path, tar::EntryType::Symlink, 0o777, destination, b"")
    }

    /// Adds a hard link.
    pub fn hard_link(self, path: &str, destination: &str) -> Layout {
        self.entry(path, tar::EntryType::Link, 0o644, destination, b"")
    }

    /// Adds a named pipe.
    pub fn pipe(self, path: &str) -> Layout {
        self.entry(path, tar::EntryType::Fifo, 0o644, "", b"")
    }

    fn entry(mut self, path: &str, kind: tar::EntryType, mode: u32, destination: &str, content: &[u8]) -> Layout {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_size(content.len() as u64);
        // Written as they are: an attacker's tar has no library that would straighten its names.
        let fields = header.as_gnu_mut().expect("a GNU header");
        fields.name[..path.len()].copy_from_slice(path.as_bytes());
        fields.linkname[..destination.len()].copy_from_slice(destination.as_bytes());
        header.set_cksum();
        self.layer.append(&header, content).expect("append to a tar in memory");
        self
    }

    /// Sets a field of the image's configuration: `User`, `Entrypoint`, `WorkingDir`, …
    pub fn config(mut self, name: &str, value: Value) -> Layout {
        self.config[name] = value;
        self
    }

    /// Writes the layout to `directory`, which must not exist; returns its path.
    pub fn write(self, directory: PathBuf) -> String {
        let base = PathBuf::from(fixtures::busybox());
        let blobs = directory.join("blobs/sha256");
        fs::create_dir_all(&blobs).expect("a directory for blobs");
        let index = read(&base.join("index.json"));
        let blob = |descriptor: &Value| {
            let digest = descriptor["digest"].as_str().and_then(|digest| digest.strip_prefix("sha256:"));
            base.join("blobs/sha256").join(digest.expect("a SHA-256 digest"))
        };
        let mut manifest = read(&blob(&index["manifests"][0]));
        let mut config = read(&blob(&manifest["config"]));
        for layer in manifest["layers"].as_array().expect("layers") {
            let from = blob(layer);
            fs::copy(&from, blobs.join(from.file_name().expect("a name"))).expect("copy a layer");
        }
        let put = |content: &[u8], media_type: &str| {
            let digest: String =
                digest(&SHA256, content).as_ref().iter().map(|byte| format!("{byte:02x}")).collect::<String>();
            fs::write(blobs.join(&digest), content).expect("write a blob");
            json!({ "mediaType": media_type, "digest": format!("sha256:{digest}"), "size": content.len() })
        };
        let layer =
            put(&self.layer.into_inner().expect("finish a tar in memory"), "application/vnd.oci.image.layer.v1.tar");
        config["config"] = self.config;
        config["history"] = json!([]);
        config["rootfs"]["diff_ids"].as_array_mut().expect("diff ids").push(layer["digest"].clone());
        manifest["layers"].as_array_mut().expect("layers").push(layer);
        manifest["config"] = put(config.to_string().as_bytes(), "application/vnd.oci.image.config.v1+json");
        let manifest = put(manifest.to_string().as_bytes(), "application/vnd.oci.image.manifest.v1+json");
        let index = json!({ "schemaVersion": 2, "manifests": [manifest] });
        fs::write(directory.join("index.json"), index.to_string()).expect("write an index");
        fs::write(directory.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).expect("write oci-layout");
        directory.to_string_lossy().into_owned()
    }
}

fn read(path: &Path) -> Value {
    let text = fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_slice(&text).expect("JSON")
}
