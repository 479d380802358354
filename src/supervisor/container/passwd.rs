//! /etc/passwd and /etc/group as a container's image has them (passwd(5), group(5)). Lines that make no sense are passed
//! over: they are the image's affair until somebody names the user in them.

/// An entry of /etc/passwd.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct User<'a> {
    pub(super) name: &'a [u8],
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) home: &'a [u8],
}

/// An entry of /etc/group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Group<'a> {
    pub(super) name: &'a [u8],
    pub(super) gid: u32,
    members: &'a [u8],
}

impl Group<'_> {
    /// Whether `user` is listed.
    pub(super) fn has_member(&self, user: &[u8]) -> bool {
        self.members.split(|byte| *byte == b',').any(|member| member.trim_ascii() == user)
    }
}

/// The users of a passwd file, in order.
pub(super) fn users(passwd: &[u8]) -> impl Iterator<Item = User<'_>> {
    lines(passwd).filter_map(|line| {
        let mut fields = line.split(|byte| *byte == b':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        let (uid, gid) = (id(fields.nth(1)?)?, id(fields.next()?)?);
        Some(User { name, uid, gid, home: fields.nth(1).unwrap_or_default() })
    })
}

/// The groups of a group file, in order.
pub(super) fn groups(group: &[u8]) -> impl Iterator<Item = Group<'_>> {
    lines(group).filter_map(|line| {
        let mut fields = line.split(|byte| *byte == b':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        let gid = id(fields.nth(1)?)?;
        Some(Group { name, gid, members: fields.next().unwrap_or_default() })
    })
}

/// A user or group id. The highest number is no id: system calls take it for "leave it alone".
pub(super) fn id(text: &[u8]) -> Option<u32> {
    let text = str::from_utf8(text).ok()?;
    // `parse` would take a sign.
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    text.parse().ok().filter(|id| *id != u32::MAX)
}

fn lines(file: &[u8]) -> impl Iterator<Item = &[u8]> {
    file.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii).filter(|line| !line.starts_with(b"#"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_read_and_nonsense_is_passed_over() {
        let passwd =
            b"root:x:0:0:root:/root:/bin/sh\n# a comment:x:1:1\n\nbroken\nbad:x:-1:0::/:\nmax:x:4294967295:0::/:\r\n\
            app:x:1000:1001:App, Inc.:/srv/app:/bin/false\r\nshort:x:7:8";
        let all: Vec<_> = users(passwd).collect();
        assert_eq!(
            all,
            [
                User { name: b"root", uid: 0, gid: 0, home: b"/root" },
                User { name: b"app", uid: 1000, gid: 1001, home: b"/srv/app" },
                User { name: b"short", uid: 7, gid: 8, home: b"" },
            ]
        );
    }

    #[test]
    fn members_are_whole_names() {
        let file = b"wheel:x:10:root, app\nnobody:x:65534:\napple:x:11:apple";
        let with_app: Vec<_> = groups(file).filter(|group| group.has_member(b"app")).map(|group| group.gid).collect();
        assert_eq!(with_app, [10]);
        assert!(groups(file).all(|group| !group.has_member(b"")) || groups(file).count() == 3);
        assert_eq!(groups(file).map(|group| group.name).collect::<Vec<_>>(), [&b"wheel"[..], b"nobody", b"apple"]);
    }

    #[test]
    fn ids_are_plain_numbers() {
        assert_eq!(id(b"0"), Some(0));
        assert_eq!(id(b"4294967294"), Some(4_294_967_294));
        for text in [&b""[..], b"+1", b"-1", b"4294967295", b"99999999999", b"1 ", b"0x1", b"\xff"] {
            assert_eq!(id(text), None, "{text:?}");
        }
    }
}
