use std::os::unix::fs::symlink;

use serde_json::json;

use super::*;

fn grant(artifacts: serde_json::Value) -> Grant {
    let artifacts = artifacts.as_object().unwrap().iter();
    let artifacts = artifacts.map(|(resource, one)| (resource.clone(), serde_json::from_value(one.clone()).unwrap()));
    Grant { artifacts: artifacts.collect(), ..Grant::default() }
}

fn of(artifacts: serde_json::Value, cdi: &Path) -> Result<Granted, String> {
    granted(&grant(artifacts), &[cdi.to_owned()], (Some(7), None)).map_err(|error| error.message)
}

#[test]
fn a_device_is_the_hosts_node_with_what_it_may_be_used_for() {
    let place = tempfile::tempdir().unwrap();
    let link = place.path().join("link");
    symlink("/dev/null", &link).unwrap();
    let device = |host: &str, path: &str, permissions: &str| json!({"hostPath": host, "containerPath": path, "permissions": permissions});
    let devices = [
        device("/dev/null", "/dev/a", "rw"),
        device(link.to_str().unwrap(), "/dev//b", "r"),
        device("/dev/zero", "/dev/a", "rwm"),
    ];
    let granted = of(json!({"example.com/a": {"devices": devices}}), place.path()).unwrap();
    let told: Vec<_> = granted.nodes.iter().map(|node| (node.path.to_str().unwrap(), node.major, node.minor)).collect();
    assert_eq!(told, [("/dev/a", 1, 3), ("/dev/b", 1, 3)]);
    assert_eq!(granted.nodes[1].host_path.as_deref(), Some(Path::new("/dev/null")));
    let rules: Vec<_> = granted.rules.iter().map(|rule| (rule.read, rule.write, rule.make)).collect();
    assert_eq!(rules, [(true, true, false), (true, false, false)]);
    let missing = place.path().join("none");
    for (device, expected) in [
        (device("/dev/null", "/dev/a", "rx"), "invalid permissions \"rx\""),
        (device("/dev/null", "/dev/a", ""), "invalid permissions \"\""),
        (device("/dev/null", "dev/a", "r"), "\"dev/a\" is not a path of a container"),
        (device("/dev/null", "/dev/../a", "r"), "is not a path of a container"),
        (device(missing.to_str().unwrap(), "/dev/a", "r"), "none: No such file or directory"),
        (device("/etc/passwd", "/dev/a", "r"), "/etc/passwd is no device"),
    ] {
        let error = of(json!({"example.com/a": {"devices": [device]}}), place.path()).unwrap_err();
        assert!(error.starts_with("device plugin of example.com/a: ") && error.contains(expected), "{error}");
    }
}

#[test]
fn a_directory_stands_for_the_devices_in_it() {
    let place = tempfile::tempdir().unwrap();
    fs::create_dir(place.path().join("sub")).unwrap();
    fs::write(place.path().join("readme"), "").unwrap();
    symlink("/dev/null", place.path().join("null")).unwrap();
    symlink("/dev/zero", place.path().join("sub/zero")).unwrap();
    let device = json!({"hostPath": place.path(), "containerPath": "/dev/all", "permissions": "rw"});
    let granted = of(json!({"example.com/a": {"devices": [device]}}), place.path()).unwrap();
    let paths: Vec<_> = granted.nodes.iter().map(|node| node.path.to_str().unwrap()).collect();
    assert_eq!(paths, ["/dev/all/null", "/dev/all/sub/zero"]);
    assert_eq!(granted.rules.len(), 2);
}

#[test]
fn of_two_resources_that_say_something_about_the_same_the_first_counts() {
    let place = tempfile::tempdir().unwrap();
    let mount = |host: &str| json!([{"hostPath": host, "containerPath": "/opt/x", "readOnly": true}]);
    let granted = of(
        json!({
            "example.com/a": {"envs": {"X": "a"}, "mounts": mount("/a")},
            "example.com/b": {"envs": {"X": "b", "Y": "b"}, "mounts": mount("/b")},
        }),
        place.path(),
    )
    .unwrap();
    assert_eq!(granted.env, [("X".to_owned(), "a".to_owned()), ("Y".to_owned(), "b".to_owned())]);
    assert_eq!(granted.mounts.len(), 1);
    assert!(granted.mounts[0].readonly);
    assert_eq!(granted.mounts[0].kind, MountKind::Bind { source: "/a".into(), sub_path: None });
}

#[test]
fn cdi_devices_are_added_and_go_before_the_plugins() {
    let place = tempfile::tempdir().unwrap();
    let spec = json!({"cdiVersion": "0.6.0", "kind": "example.com/gpu", "devices": [{"name": "0", "containerEdits": {
        "env": ["X=cdi"], "additionalGids": [44],
        "deviceNodes": [
            {"path": "/dev/a", "hostPath": "/dev/zero", "permissions": "r", "gid": 9},
            {"path": "/dev/b", "type": "c", "major": 10, "minor": 229, "fileMode": 384},
        ],
        "mounts": [{"hostPath": "/lib", "containerPath": "/opt/x", "options": ["ro", "rslave"]}],
    }}]});
    fs::write(place.path().join("gpu.json"), spec.to_string()).unwrap();
    let device = json!({"hostPath": "/dev/null", "containerPath": "/dev/a", "permissions": "rwm"});
    let with = |name: &str| {
        json!({"example.com/a": {
            "envs": {"X": "plugin"}, "devices": [device], "cdiDevices": [name],
            "mounts": [{"hostPath": "/a", "containerPath": "/opt/x"}],
        }})
    };
    let granted = of(with("example.com/gpu=0"), place.path()).unwrap();
    let told: Vec<_> = granted
        .nodes
        .iter()
        .map(|node| (node.path.to_str().unwrap(), node.major, node.minor, node.uid, node.gid))
        .collect();
    // What is nobody's is the container's user's.
    assert_eq!(told, [("/dev/a", 1, 5, 7, 9), ("/dev/b", 10, 229, 7, 0)]);
    assert_eq!(granted.nodes[1].mode, 0o600);
    assert_eq!((granted.env[0].1.as_str(), granted.cdi_env[0].1.as_str()), ("plugin", "cdi"));
    assert_eq!(granted.groups, [44]);
    assert_eq!(granted.mounts.len(), 1);
    assert_eq!(granted.mounts[0].propagation, Propagation::Slave);
    let error = of(with("example.com/gpu=1"), place.path()).unwrap_err();
    assert_eq!(error, "CDI device injection failed: unresolvable CDI devices example.com/gpu=1");
}
