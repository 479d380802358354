//! Debian's docker-registry on loopback inside a place, filled by skopeo.

use std::{
    fs::{self, File},
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Child, Stdio},
    time::Duration,
};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};

use crate::{Place, eventually, fixtures, help::run};

/// `user:secret`, as htpasswd -B writes it.
const HTPASSWD: &str = "user:$2b$05$DntRsGnugkwUzvl.6G7wyOrsfKjbCWlH7PkpmNRbF3lB3LKDhpmHK\n";

/// A running registry; ended when dropped.
pub struct Registry<'a> {
    place: &'a Place,
    child: Child,
    port: u16,
    protected: bool,
}

impl<'a> Registry<'a> {
    /// Starts one. `protected`: it wants user and password (`user`, `secret`).
    pub fn start(place: &'a Place, port: u16, protected: bool) -> Registry<'a> {
        Registry::launch(place, port, protected, None)
    }

    /// Starts one that speaks TLS, with a certificate for `name` (host name or address) that was signed by an authority
    /// of its own: [`Registry::authority`].
    pub fn start_with_tls(place: &'a Place, port: u16, name: &str) -> Registry<'a> {
        Registry::launch(place, port, false, Some(name))
    }

    fn launch(place: &'a Place, port: u16, protected: bool, certified: Option<&str>) -> Registry<'a> {
        let directory = place.path(&format!("registry-{port}"));
        fs::create_dir_all(directory.join("data")).expect("a directory");
        fs::write(directory.join("htpasswd"), HTPASSWD).expect("write");
        let path = directory.display();
        let auth = format!("auth: {{ htpasswd: {{ realm: berth, path: {path}/htpasswd }} }}\n");
        let tls = format!(", tls: {{ certificate: {path}/certificate.pem, key: {path}/key.pem }}");
        if let Some(name) = certified {
            certify(&directory, name);
        }
        let config = format!(
            "version: 0.1\nlog: {{ level: error }}\nstorage: {{ filesystem: {{ rootdirectory: {path}/data }} }}\n\
             http: {{ addr: 127.0.0.1:{port}{} }}\n{}",
            if certified.is_some() { &tls } else { "" },
            if protected { &auth } else { "" }
        );
        fs::write(directory.join("config.yml"), config).expect("write");
        let log = File::create(directory.join("log")).expect("a log");
        let child = place
            .command("/usr/bin/docker-registry")
            .arg("serve")
            .arg(directory.join("config.yml"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("duplicate"))
            .stderr(log)
            .spawn()
            .expect("docker-registry starts");
        let registry = Registry { place, child, port, protected };
        eventually("the registry answers", Duration::from_secs(15), || {
            place.inside(|| TcpStream::connect(("127.0.0.1", port)).ok())
        });
        registry
    }

    /// A reference to `image` in this registry.
    pub fn reference(&self, image: &str) -> String {
        format!("127.0.0.1:{}/{image}", self.port)
    }

    /// The certificate of the authority that signed the registry's own, if it speaks TLS.
    pub fn authority(&self) -> PathBuf {
        self.place.path(&format!("registry-{}/authority.pem", self.port))
    }

    /// Where its blobs are.
    pub fn blobs(&self) -> PathBuf {
        self.place.path(&format!("registry-{}/data/docker/registry/v2/blobs/sha256", self.port))
    }

    /// Copies a fixture (`busybox:1`) to `image` (`test/busybox:1`), with more options for skopeo; returns the
    /// digest of its manifest.
    #[track_caller]
    pub fn push(&self, fixture: &str, image: &str, options: &str) -> String {
        let layout = fixtures::images().join(fixture).display().to_string();
        self.copy(&format!("oci:{layout}"), image, options)
    }

    /// Copies from any place that skopeo knows.
    #[track_caller]
    pub fn copy(&self, source: &str, image: &str, options: &str) -> String {
        let credentials = if self.protected { "--dest-creds user:secret" } else { "" };
        let digest = self.place.path("digest");
        run(
            self.place,
            &format!(
                "skopeo --insecure-policy --tmpdir {} copy --quiet --dest-tls-verify=false {credentials} {options} \
                 --digestfile {} {source} docker://{}",
                self.place.dir.path().display(),
                digest.display(),
                self.reference(image)
            ),
        );
        fs::read_to_string(digest).expect("the digest").trim().to_owned()
    }
}

/// Makes an authority (`authority.pem`) and has it sign a certificate for `name` (`certificate.pem`, `key.pem`).
fn certify(directory: &Path, name: &str) {
    let mut authority = CertificateParams::default();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    authority.distinguished_name.push(DnType::CommonName, "authority of the berth tests");
    let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate().expect("a key")).expect("an authority");
    let key = KeyPair::generate().expect("a key");
    let certificate = CertificateParams::new([name.to_owned()]).expect("a name").signed_by(&key, &authority);
    let certificate = certificate.expect("a certificate").pem();
    for (file, text) in
        [("authority.pem", authority.pem()), ("certificate.pem", certificate), ("key.pem", key.serialize_pem())]
    {
        fs::write(directory.join(file), text).expect("write");
    }
}

impl Drop for Registry<'_> {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
