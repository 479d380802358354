//! Who the process runs as: names of the image looked up in the container's own files.

use std::{
    collections::BTreeSet,
    ffi::OsString,
    fs::File,
    io::{self, Read},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::ffi::OsStringExt,
    },
    path::Path,
};

use super::{
    error::{Failure, Reason, Step},
    passwd::{self, groups, users},
};
use crate::{
    supervisor::spec::{StartError, UserSpec},
    sys::{
        node::{self, Kind},
        openat2::{Scope, openat2, purpose},
    },
};

/// The outcome.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::supervisor) struct Identity {
    pub(in crate::supervisor) uid: u32,
    pub(in crate::supervisor) gid: u32,
    /// Supplementary groups in ascending order, the primary one among them.
    pub(in crate::supervisor) groups: Vec<u32>,
    /// From the container's /etc/passwd; `/` for a user it does not know.
    pub(in crate::supervisor) home: OsString,
}

/// The user files of a container, as far as they exist.
pub(in crate::supervisor) struct Files {
    passwd: Vec<u8>,
    group: Vec<u8>,
}

/// More than any real file of this kind; an image could have one that fills the memory.
const MAX_SIZE: u64 = 4 << 20;

impl Files {
    /// Reads them beneath `root`. A missing one is empty.
    pub(in crate::supervisor) fn read(root: BorrowedFd<'_>) -> Result<Files, Failure> {
        let read = |path: &str| {
            read_file(root, Path::new(path))
                .step(|| format!("read /{path} of the container"))
                .map_err(|failure| failure.because(Reason::Create))
        };
        Ok(Files { passwd: read("etc/passwd")?, group: read("etc/group")? })
    }
}

fn read_file(root: BorrowedFd<'_>, path: &Path) -> io::Result<Vec<u8>> {
    let file = match openat2(root, path, purpose::READ, 0, Scope::InRoot) {
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(Vec::new());
        }
        opened => opened?,
    };
    if node::status(file.as_fd())?.kind != Kind::Regular {
        return Err(io::Error::other("it is not a regular file"));
    }
    let mut content = Vec::new();
    if File::from(file).take(MAX_SIZE + 1).read_to_end(&mut content)? as u64 > MAX_SIZE {
        return Err(io::Error::other(format!("it is larger than {MAX_SIZE} bytes")));
    }
    Ok(content)
}

/// Decides who the process runs as. The rules are those of containerd's CRI plugin (`WithUser`, `WithAdditionalGIDs`)
/// and the kubelet (`verifyRunAsNonRoot`).
pub(in crate::supervisor) fn identify(spec: &UserSpec, files: &Files) -> Result<Identity, Failure> {
    let (image_user, image_group) = match spec.image_user.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (spec.image_user.as_str(), None),
    };
    let is_named = spec.uid.is_none() && !image_user.is_empty() && passwd::id(image_user.as_bytes()).is_none();
    if spec.non_root && is_named {
        return Err(refused(
            Reason::Config,
            format!(
                "container has runAsNonRoot and image has non-numeric user ({image_user}), cannot verify user is non-root"
            ),
        ));
    }
    let entry = if is_named {
        let known = users(&files.passwd).find(|user| user.name == image_user.as_bytes());
        Some(known.ok_or_else(|| {
            refused(Reason::Create, format!("unable to find user {image_user}: no matching entries in passwd file"))
        })?)
    } else {
        let uid = spec.uid.or_else(|| passwd::id(image_user.as_bytes())).unwrap_or(0);
        users(&files.passwd).find(|user| user.uid == uid)
    };
    let uid = match entry {
        Some(user) => user.uid,
        None => spec.uid.or_else(|| passwd::id(image_user.as_bytes())).unwrap_or(0),
    };
    if spec.non_root && uid == 0 {
        let message = match spec.uid {
            Some(_) => "container's runAsUser breaks non-root policy",
            None => "container has runAsNonRoot and image will run as root",
        };
        return Err(refused(Reason::Config, message.to_owned()));
    }
    // The group of the image belongs to its user: another user does not take it over.
    let image_group = image_group.filter(|group| spec.uid.is_none() && !group.is_empty());
    let gid = match (spec.gid, image_group) {
        (Some(gid), _) => gid,
        (None, Some(group)) => find_group(group, files)?,
        (None, None) => entry.map_or(0, |user| user.gid),
    };
    let mut all: BTreeSet<u32> = spec.groups.iter().copied().chain([gid]).collect();
    if let Some(user) = entry.filter(|_| !spec.strict_groups) {
        let memberships = groups(&files.group).filter(|group| group.name != user.name && group.has_member(user.name));
        all.extend(memberships.map(|group| group.gid));
    }
    let home = entry.map(|user| user.home).filter(|home| !home.is_empty()).unwrap_or(b"/");
    Ok(Identity { uid, gid, groups: all.into_iter().collect(), home: OsString::from_vec(home.to_vec()) })
}

/// For exec: the ids that the container was started with, and the home directory that its files now give.
pub(super) fn identity_of((uid, gid, groups): &(u32, u32, Vec<u32>), files: &Files) -> Identity {
    let entry = users(&files.passwd).find(|user| user.uid == *uid);
    let home = entry.map(|user| user.home).filter(|home| !home.is_empty()).unwrap_or(b"/");
    Identity { uid: *uid, gid: *gid, groups: groups.clone(), home: OsString::from_vec(home.to_vec()) }
}

fn find_group(group: &str, files: &Files) -> Result<u32, Failure> {
    if let Some(gid) = passwd::id(group.as_bytes()) {
        return Ok(gid);
    }
    let known = groups(&files.group).find(|entry| entry.name == group.as_bytes());
    known.map(|entry| entry.gid).ok_or_else(|| {
        refused(Reason::Create, format!("unable to find group {group}: no matching entries in group file"))
    })
}

fn refused(reason: Reason, message: String) -> Failure {
    Failure::refused(StartError::USER, message).because(reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files() -> Files {
        Files {
            passwd: b"root:x:0:0:root:/root:/bin/sh\napp:x:1000:1001::/srv/app:\nodd:x:0:0::/:\n".to_vec(),
            group: b"root:x:0:root\napp:x:1001:app\nwheel:x:10:root,app\nlog:x:20:app\n".to_vec(),
        }
    }

    fn image(user: &str) -> UserSpec {
        UserSpec { image_user: user.to_owned(), ..UserSpec::default() }
    }

    fn ids(spec: &UserSpec) -> (u32, u32, Vec<u32>) {
        let identity = identify(spec, &files()).unwrap();
        (identity.uid, identity.gid, identity.groups)
    }

    fn error(spec: &UserSpec) -> StartError {
        identify(spec, &files()).unwrap_err().into()
    }

    #[test]
    fn no_user_is_root_with_its_memberships() {
        assert_eq!(ids(&image("")), (0, 0, vec![0, 10]));
    }

    #[test]
    fn names_and_numbers_of_the_image() {
        assert_eq!(ids(&image("app")), (1000, 1001, vec![10, 20, 1001]));
        assert_eq!(ids(&image("1000")), (1000, 1001, vec![10, 20, 1001]));
        assert_eq!(ids(&image("app:log")), (1000, 20, vec![10, 20]));
        assert_eq!(ids(&image("1000:2000")), (1000, 2000, vec![10, 20, 2000]));
        assert_eq!(ids(&image("4242")), (4242, 0, vec![0]));
    }

    #[test]
    fn the_pod_overrides_the_image() {
        let user = UserSpec { uid: Some(4242), ..image("app:log") };
        assert_eq!(ids(&user), (4242, 0, vec![0]), "the image's group goes with its user");
        let group = UserSpec { gid: Some(7), groups: vec![3000, 10], ..image("app") };
        assert_eq!(ids(&group), (1000, 7, vec![7, 10, 20, 3000]));
        let strict = UserSpec { strict_groups: true, groups: vec![3000], ..image("app") };
        assert_eq!(ids(&strict), (1000, 1001, vec![1001, 3000]));
    }

    #[test]
    fn home_comes_from_the_entry() {
        assert_eq!(identify(&image("app"), &files()).unwrap().home, "/srv/app");
        assert_eq!(identify(&image("4242"), &files()).unwrap().home, "/");
        assert_eq!(identity_of(&(1000, 5, vec![5]), &files()).home, "/srv/app");
    }

    #[test]
    fn unknown_names_are_the_container_s_fault() {
        let unknown = error(&image("nobody"));
        assert_eq!(unknown.message, "unable to find user nobody: no matching entries in passwd file");
        assert_eq!(unknown.reason, "CreateContainerError");
        let unknown = error(&image("app:nobody"));
        assert_eq!(unknown.message, "unable to find group nobody: no matching entries in group file");
    }

    #[test]
    fn non_root_is_checked_after_resolution() {
        let non_root = |spec: UserSpec| UserSpec { non_root: true, ..spec };
        assert_eq!(error(&non_root(image(""))).message, "container has runAsNonRoot and image will run as root");
        assert_eq!(error(&non_root(image("0"))).reason, "CreateContainerConfigError");
        assert!(error(&non_root(image("app"))).message.contains("non-numeric user (app)"));
        assert_eq!(
            error(&non_root(UserSpec { uid: Some(0), ..image("app") })).message,
            "container's runAsUser breaks non-root policy"
        );
        assert_eq!(ids(&non_root(image("1000"))).0, 1000);
        assert_eq!(ids(&non_root(UserSpec { uid: Some(1000), ..image("odd") })).0, 1000);
    }
}
