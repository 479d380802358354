use std::{fs, path::PathBuf};

use serde_json::{Value, json};

use super::*;
use crate::supervisor::spec::Propagation;

/// Two directories of specifications, the second before the first.
struct Place {
    directory: tempfile::TempDir,
}

impl Place {
    fn new() -> Place {
        let directory = tempfile::tempdir().unwrap();
        for name in ["etc", "run"] {
            fs::create_dir(directory.path().join(name)).unwrap();
        }
        Place { directory }
    }

    fn put(&self, file: &str, text: &str) {
        fs::write(self.directory.path().join(file), text).unwrap();
    }

    fn device(&self, file: &str, device: &str, edits: &Value) {
        let spec = json!({"cdiVersion": "0.6.0", "kind": "vendor.com/gpu",
            "devices": [{"name": device, "containerEdits": edits}]});
        self.put(file, &spec.to_string());
    }

    fn resolve(&self, names: &[&str]) -> Result<Edits, String> {
        let directories = ["missing", "etc", "run"].map(|name| self.directory.path().join(name));
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        resolve(&directories, &names).map_err(|error| error.to_string())
    }
}

fn env(edits: &Edits) -> Vec<String> {
    edits.env.iter().map(|(name, value)| format!("{name}={value}")).collect()
}

#[test]
fn everything_that_a_device_asks_for_is_there() {
    let place = Place::new();
    place.put(
        "etc/vendor.yaml",
        r#"
cdiVersion: "0.6.0"
kind: vendor.com/gpu
containerEdits:
  env: [ALL=1]
devices:
- name: "0"
  containerEdits:
    env: [ONE=a=b]
    additionalGids: [0, 44]
    deviceNodes:
    - path: /dev/gpu0
    - path: /dev/ctl
      hostPath: /dev/null
      type: c
      major: 1
      minor: 3
      fileMode: 432
      permissions: rw
      uid: 7
    mounts:
    - hostPath: /usr/lib/vendor
      containerPath: /lib/vendor
      options: [ro, nosuid, rbind, rslave]
- name: "1"
  containerEdits:
    env: [TWO=2]
"#,
    );
    let edits = place.resolve(&["vendor.com/gpu=0", "vendor.com/gpu=1"]).unwrap();
    assert_eq!(env(&edits), ["ALL=1", "ONE=a=b", "TWO=2"]);
    assert_eq!(edits.groups, [44]);
    let plain = &edits.devices[0];
    assert_eq!(
        (plain.host_path.to_str().unwrap(), plain.number, plain.permissions.as_str()),
        ("/dev/gpu0", None, "rwm")
    );
    let given = &edits.devices[1];
    assert_eq!((given.number, given.permissions.as_str()), (Some((false, 1, 3)), "rw"));
    assert_eq!((given.uid, given.gid), (Some(7), None));
    assert_eq!(edits.mounts[0].container_path, PathBuf::from("/lib/vendor"));
    assert_eq!((edits.mounts[0].readonly, edits.mounts[0].propagation), (true, Propagation::Slave));
    // A device alone takes what holds for all along.
    assert_eq!(env(&place.resolve(&["vendor.com/gpu=1"]).unwrap()), ["ALL=1", "TWO=2"]);
    assert_eq!(place.resolve(&[]).unwrap(), Edits::default());
}

#[test]
fn the_later_directory_goes_before_the_earlier() {
    let place = Place::new();
    place.device("etc/a.json", "0", &json!({"env": ["FROM=etc"]}));
    place.device("run/a.json", "0", &json!({"env": ["FROM=run"]}));
    place.device("etc/b.txt", "1", &json!({"env": ["FROM=nowhere"]}));
    assert_eq!(env(&place.resolve(&["vendor.com/gpu=0"]).unwrap()), ["FROM=run"]);
    let error = place.resolve(&["vendor.com/gpu=0", "vendor.com/gpu=1"]).unwrap_err();
    assert_eq!(error, "CDI device injection failed: unresolvable CDI devices vendor.com/gpu=1");
}

#[test]
fn a_device_that_is_there_twice_is_neither() {
    let place = Place::new();
    place.device("etc/a.json", "0", &json!({}));
    place.device("etc/b.json", "0", &json!({}));
    let error = place.resolve(&["vendor.com/gpu=0"]).unwrap_err();
    assert!(
        error.contains("unresolvable CDI devices vendor.com/gpu=0 (not usable: vendor.com/gpu=0 is in several"),
        "{error}"
    );
}

#[test]
fn what_is_not_done_here_is_refused_by_name() {
    let place = Place::new();
    let hook = json!({"hookName": "createContainer", "path": "/usr/bin/hook", "args": ["hook"], "timeout": 1});
    let cases = [
        (json!({"hooks": [hook]}), "createContainer hooks are not run here (/usr/bin/hook)"),
        (json!({"netDevices": [{"hostInterfaceName": "eth1", "name": "eth1"}]}), "netDevices are not moved"),
        (json!({"intelRdt": {"closID": "x"}}), "intelRdt is not set here"),
        (json!({"env": ["NAME"]}), "invalid environment variable \"NAME\""),
        (json!({"deviceNodes": [{"path": "/dev/x", "type": "p"}]}), "/dev/x: device nodes of type \"p\""),
        (json!({"deviceNodes": [{"path": "/dev/x", "permissions": "rx"}]}), "invalid permissions \"rx\""),
        (json!({"deviceNodes": [{"path": "x"}]}), "x is not an absolute path"),
        (json!({"mounts": [{"hostPath": "/a", "containerPath": "/b", "type": "tmpfs"}]}), "mounts of type \"tmpfs\""),
        (json!({"mounts": [{"hostPath": "/a", "containerPath": "/b", "options": ["sync"]}]}), "option \"sync\""),
    ];
    for (edits, expected) in cases {
        place.device("etc/a.json", "0", &edits);
        let error = place.resolve(&["vendor.com/gpu=0"]).unwrap_err();
        assert!(error.contains(expected) && error.contains("a.json: vendor.com/gpu=0: "), "{error}");
    }
}

#[test]
fn a_specification_that_is_not_understood_is_not_used() {
    let place = Place::new();
    let spec = |change: fn(&mut Value)| {
        let mut spec = json!({"cdiVersion": "0.6.0", "kind": "vendor.com/gpu",
            "devices": [{"name": "0", "containerEdits": {}}]});
        change(&mut spec);
        spec.to_string()
    };
    place.put("etc/a.json", &spec(|_| {}));
    place.resolve(&["vendor.com/gpu=0"]).unwrap();
    type Case = (fn(&mut Value), &'static str);
    let cases: [Case; 5] = [
        (|spec| spec["cdiVersion"] = json!("2.0"), "unknown cdiVersion"),
        (|spec| spec["kind"] = json!("gpu"), "invalid kind"),
        (|spec| spec["devices"][0]["name"] = json!("-"), "invalid device name"),
        (|spec| spec["devices"][0]["containerEdits"]["sideEffects"] = json!(1), "unknown field `sideEffects`"),
        (|spec| spec["more"] = json!(1), "unknown field `more`"),
    ];
    for (change, expected) in cases {
        place.put("etc/a.json", &spec(change));
        let error = place.resolve(&["vendor.com/gpu=0"]).unwrap_err();
        assert!(error.contains(expected), "{error}");
    }
}
