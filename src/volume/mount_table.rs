//! Which mounts lie below a directory, read from /proc (proc_pid_mountinfo(5)).

use std::{
    ffi::OsString,
    fs, io,
    os::unix::ffi::OsStringExt,
    path::{Path, PathBuf},
};

/// A line of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Where.
    pub point: PathBuf,
    /// A server or a program answers for the file system, or does not: what touches it may hang.
    pub is_remote: bool,
}

/// Types of file systems that ask somebody else.
const REMOTE: [&str; 12] =
    ["9p", "afs", "autofs", "beegfs", "ceph", "cifs", "fuse", "gfs2", "glusterfs", "lustre", "nfs", "smb3"];

/// Mount points of this thread's mount namespace, in the order they were mounted. A path can be in it more than once.
pub fn mount_points() -> io::Result<Vec<PathBuf>> {
    let table = fs::read("/proc/thread-self/mountinfo")?;
    Ok(table.split(|byte| *byte == b'\n').filter_map(mount_point).collect())
}

/// Mount points at or below `directory` (which contains no symbolic links), the deepest first and, of several at one
/// place, the topmost: the order in which they can be unmounted.
pub fn beneath(directory: &Path) -> io::Result<Vec<Mount>> {
    let table = fs::read("/proc/thread-self/mountinfo")?;
    let mut mounts: Vec<Mount> = table.split(|byte| *byte == b'\n').filter_map(mount).collect();
    mounts.retain(|mount| mount.point.starts_with(directory));
    mounts.reverse();
    mounts.sort_by_key(|mount| std::cmp::Reverse(mount.point.components().count()));
    Ok(mounts)
}

fn mount(line: &[u8]) -> Option<Mount> {
    let point = mount_point(line)?;
    // Optional fields end with a hyphen; the type follows: `nfs4`, `fuse.sshfs`.
    let mut fields = line.split(|byte| *byte == b' ').skip(6).skip_while(|field| *field != b"-");
    let kind = String::from_utf8_lossy(fields.nth(1).unwrap_or_default()).into_owned();
    let family = kind.split('.').next().unwrap_or_default();
    let is_remote =
        REMOTE.iter().any(|remote| family.trim_end_matches(|digit: char| digit.is_ascii_digit()) == *remote)
            || REMOTE.contains(&family);
    Some(Mount { point, is_remote })
}

/// The fifth field of a line.
fn mount_point(line: &[u8]) -> Option<PathBuf> {
    let field = line.split(|byte| *byte == b' ').nth(4)?;
    Some(PathBuf::from(OsString::from_vec(unescape(field))))
}

/// Space, tab, newline and backslash are written as three octal digits behind a backslash.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, after)) = rest.split_first() {
        let octal = (*first == b'\\').then(|| after.first_chunk::<3>()).flatten();
        let code = octal.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        match code {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[3..];
            }
            None => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_point_is_the_fifth_field_unescaped() {
        let line = br"36 35 98:0 /mnt1 /mnt\0402\134x rw,noatime master:1 - ext3 /dev/root rw";
        assert_eq!(mount_point(line), Some(PathBuf::from(r"/mnt 2\x")));
        assert_eq!(mount_point(b""), None);
        assert_eq!(unescape(br"a\04"), br"a\04");
        assert_eq!(unescape(br"\999"), br"\999");
    }

    #[test]
    fn the_type_tells_whether_somebody_else_answers() {
        let remote = |kind: &str| {
            let line = format!("36 35 0:40 / /mnt rw,noatime shared:1 master:2 - {kind} source rw");
            mount(line.as_bytes()).unwrap().is_remote
        };
        for kind in ["nfs", "nfs4", "fuse", "fuse.sshfs", "cifs", "ceph", "9p", "autofs", "smb3"] {
            assert!(remote(kind), "{kind}");
        }
        // A fuseblk, too, is a program, but on a disk of this machine.
        for kind in ["ext4", "xfs", "tmpfs", "overlay", "proc", "fuseblk", "nfsd"] {
            assert!(!remote(kind), "{kind}");
        }
        assert!(!mount(b"36 35 98:0 / /mnt rw,noatime - ext4 /dev/nfs rw").unwrap().is_remote);
    }

    #[test]
    fn this_process_has_a_root_mount() {
        assert!(mount_points().unwrap().iter().any(|point| point == Path::new("/")));
    }
}
