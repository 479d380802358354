//! Images and manifests the tests use.

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

/// Directory with the OCI layouts of `images.sh`, made once for all test runs.
pub fn images() -> &'static Path {
    static IMAGES: OnceLock<PathBuf> = OnceLock::new();
    IMAGES.get_or_init(|| {
        let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut target = std::env::current_exe().expect("a path of the test executable");
        while target.file_name().is_some_and(|name| name != "target") && target.pop() {}
        let target = if target.as_os_str().is_empty() { std::env::temp_dir() } else { target };
        let out = target.join("fixtures");
        std::fs::create_dir_all(&out).expect("a directory for fixtures");
        // Test executables run one after the other, but several tests of one ask at the same time: OnceLock holds them.
        let lock = std::fs::File::create(out.join(".lock")).expect("a lock file");
        lock.lock().expect("the lock");
        let status = Command::new(manifest.join("images.sh")).arg(&out).status().expect("images.sh runs");
        assert!(status.success(), "images.sh: {status}");
        out
    })
}

/// The busybox layout; loaded as `busybox:1`.
pub fn busybox() -> String {
    images().join("busybox").to_string_lossy().into_owned()
}

/// The nginx layout; assembled when it is first asked for, which takes a while.
pub fn nginx() -> String {
    static NGINX: OnceLock<()> = OnceLock::new();
    NGINX.get_or_init(|| {
        let out = images();
        let lock = std::fs::File::create(out.join(".lock")).expect("a lock file");
        lock.lock().expect("the lock");
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("images.sh");
        let status = Command::new(script).arg(out).arg("--nginx").status().expect("images.sh runs");
        assert!(status.success(), "images.sh --nginx: {status}");
    });
    images().join("nginx").to_string_lossy().into_owned()
}

/// A pod with one busybox container that runs `script`.
pub fn pod(name: &str, script: &str) -> String {
    serde_json::json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": name },
        "spec": {
            "terminationGracePeriodSeconds": 2,
            "containers": [{
                "name": "app",
                "image": "busybox:1",
                "command": ["sh", "-c", script],
            }],
        },
    })
    .to_string()
}
