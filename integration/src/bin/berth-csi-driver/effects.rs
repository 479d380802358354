//! What the driver does. Everything may be repeated, and undone without having been done.

use std::{
    fs::{self, File},
    io,
    path::Path,
};

use nix::{
    errno::Errno,
    mount::{MntFlags, MsFlags, mount, umount2},
};

use crate::{
    messages::{Leave, Publish, Stage},
    serve::{Driver, Failure},
};

fn because(what: &str) -> impl Fn(io::Error) -> Failure {
    let what = what.to_owned();
    move |error| Failure { code: 13, message: format!("{what}: {error}") }
}

fn is_mounted(path: &str) -> bool {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    table.lines().any(|line| line.split(' ').nth(4) == Some(path))
}

fn bind(source: &Path, target: &str) -> Result<(), Failure> {
    if is_mounted(target) {
        return Ok(());
    }
    mount(Some(source), target, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        .map_err(|error| because(&format!("bind {} on {target}", source.display()))(error.into()))
}

fn unmount(path: &str) -> Result<(), Failure> {
    loop {
        match umount2(path, MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) => {}
            Err(Errno::EINVAL | Errno::ENOENT) => return Ok(()),
            Err(error) => return Err(because(&format!("unmount {path}"))(error.into())),
        }
    }
}

impl Driver {
    fn volume(&self, id: &str) -> Result<std::path::PathBuf, Failure> {
        let path = self.state.join("volumes").join(id.replace('/', "_"));
        fs::create_dir_all(&path).map_err(because("make the volume"))?;
        Ok(path)
    }

    /// Binds the volume's directory; a device needs nothing of the kind.
    pub fn stage(&self, asked: &Stage) -> Result<(), Failure> {
        if asked.capability.as_ref().is_some_and(|capability| capability.block.is_some()) {
            return Ok(());
        }
        bind(&self.volume(&asked.volume_id)?, &asked.staging)
    }

    pub fn unstage(&self, asked: &Leave) -> Result<(), Failure> {
        unmount(&asked.path)
    }

    pub fn publish(&self, asked: &Publish) -> Result<(), Failure> {
        let Publish { volume_id, staging, target, context, .. } = asked;
        if asked.capability.as_ref().is_some_and(|capability| capability.block.is_some()) {
            File::options().create(true).append(true).open(target).map_err(because("make the place of a device"))?;
            let device = context.get("device").map(String::as_str).unwrap_or_default();
            return bind(Path::new(device), target);
        }
        fs::create_dir_all(target).map_err(because("make the target"))?;
        let own = context.get("csi.storage.k8s.io/ephemeral").is_some_and(|text| text == "true");
        if own || context.contains_key("memory") {
            if !is_mounted(target) {
                mount(Some(volume_id.as_str()), target.as_str(), Some("tmpfs"), MsFlags::empty(), Some("size=1m"))
                    .map_err(|error| because(&format!("mount a file system on {target}"))(error.into()))?;
            }
        } else if staging.is_empty() {
            bind(&self.volume(volume_id)?, target)?;
        } else {
            if !is_mounted(staging) {
                return Err(Failure { code: 9, message: format!("{volume_id} is not staged at {staging}") });
            }
            bind(Path::new(staging), target)?;
        }
        if let Some(content) = context.get("content") {
            fs::write(Path::new(target).join("content"), content).map_err(because("write the content"))?;
        }
        // How often it has been published.
        let count = Path::new(target).join("published");
        let before: u32 = fs::read_to_string(&count).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0);
        if context.contains_key("counted") {
            fs::write(count, format!("{}\n", before + 1)).map_err(because("count"))?;
        }
        if asked.read_only {
            let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
            mount(None::<&str>, target.as_str(), None::<&str>, flags, None::<&str>)
                .map_err(|error| because(&format!("make {target} read-only"))(error.into()))?;
        }
        Ok(())
    }

    pub fn unpublish(&self, asked: &Leave) -> Result<(), Failure> {
        unmount(&asked.path)?;
        let path = Path::new(&asked.path);
        let removed = if path.is_dir() { fs::remove_dir(path) } else { fs::remove_file(path) };
        match removed {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(because("remove the target")(error)),
            _ => Ok(()),
        }
    }
}
