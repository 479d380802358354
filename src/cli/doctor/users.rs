//! Whether the directories of images and pods can be shown with other owners, which pods with `hostUsers: false` need.

use std::{
    io::{self, ErrorKind},
    os::fd::AsFd,
    path::Path,
};

use super::Finding;
use crate::{
    obs::chain::Chain,
    supervisor::{
        spec::IdRange,
        user_namespace::{self, UserNamespaceError},
    },
    sys::mount,
};

/// Any ids will do for a namespace in which nothing is run and that ends with the check.
const IDS: IdRange = IdRange { first: 65536, count: 65536 };

/// Why it could not be tried, or did not work.
#[derive(Debug, thiserror::Error)]
enum Trouble {
    #[error("make a user namespace")]
    Namespace(#[from] UserNamespaceError),
    #[error("copy the mount of {0}")]
    Copy(String, #[source] io::Error),
    #[error("map the owners of {0}")]
    Map(String, #[source] io::Error),
}

/// Tries it with a copy of the mount that `root` is in. Nobody else can see the copy, and it goes when this returns.
pub(super) fn idmapped_mounts(root: &Path) -> Finding {
    const NAME: &str = "idmapped mounts";
    // Where it will be made, if it is not there yet.
    let existing = root.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    let shown = root.display();
    let needs = "pods with hostUsers: false need it";
    match map_owners(existing) {
        Ok(()) => Finding::ok(NAME, format!("the file system of {shown} has them")),
        Err(Trouble::Map(_, error)) if error.kind() == ErrorKind::InvalidInput => Finding::warning(
            NAME,
            format!("the file system of {shown} does not have them; {needs}"),
            "choose a directory on ext4, xfs or btrfs with --root-dir, or run a later kernel (tmpfs: Linux 6.3)",
        ),
        Err(trouble) => {
            let advice = "run as root: sudo berth doctor";
            Finding::warning(NAME, format!("could not be tried ({}); {needs}", Chain(&trouble)), advice)
        }
    }
}

fn map_owners(directory: &Path) -> Result<(), Trouble> {
    let shown = || directory.display().to_string();
    let copied = |source: io::Error| Trouble::Copy(shown(), source);
    let place = mount::open_place(directory).map_err(copied)?;
    let copy = mount::clone_tree(place.as_fd(), false).map_err(copied)?;
    let users = user_namespace::make(IDS, 0, &[])?;
    mount::set_id_map(copy.as_fd(), false, users.as_fd()).map_err(|source| Trouble::Map(shown(), source))
}

#[cfg(test)]
mod tests {
    use super::{super::Verdict, *};

    #[test]
    #[ignore = "rootful: run by make test with --include-ignored"]
    fn a_file_system_has_them_or_the_finding_says_that_it_has_not() {
        // Every kernel that has these mounts at all has them for the one and not for the other.
        assert_eq!(idmapped_mounts(Path::new("/tmp/not/there")).verdict, Verdict::Ok);
        let finding = idmapped_mounts(Path::new("/proc/self"));
        assert_eq!(finding.verdict, Verdict::Warning);
        assert!(finding.meaning.contains("does not have them"), "{finding:?}");
    }
}
