//! PAX extended header records (POSIX.1-2017, pax, "pax Header Block"): `length key=value\n`, binary-safe.

use super::UnpackError;

/// The records that matter for unpacking.
#[derive(Debug, Default)]
pub(super) struct Extensions {
    pub path: Option<Vec<u8>>,
    pub link: Option<Vec<u8>>,
    pub size: Option<u64>,
    pub uid: Option<u64>,
    pub gid: Option<u64>,
    pub mtime: Option<(i64, u32)>,
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub sparse: Sparse,
}

/// How a sparse file is described (GNU tar manual, "Storing Sparse Files").
#[derive(Debug, Default)]
pub(super) enum Sparse {
    #[default]
    None,
    /// Version 0.1: the map is in the header.
    Inline { map: Vec<(u64, u64)>, real_size: u64, name: Option<Vec<u8>> },
    /// Version 1.0: the map precedes the data.
    InData { real_size: u64, name: Option<Vec<u8>> },
}

impl Extensions {
    pub(super) fn parse(mut data: &[u8]) -> Result<Extensions, UnpackError> {
        let mut extensions = Extensions::default();
        let (mut major, mut map, mut real_size, mut name) = (None, None, None, None);
        while !data.is_empty() {
            // Some writers pad with NULs.
            if data.iter().all(|byte| *byte == 0) {
                break;
            }
            let (key, value, rest) = record(data).ok_or_else(|| bad("PAX record"))?;
            data = rest;
            match key {
                b"path" => extensions.path = Some(value.to_vec()),
                b"linkpath" => extensions.link = Some(value.to_vec()),
                b"size" => extensions.size = Some(integer(value)?),
                b"uid" => extensions.uid = Some(integer(value)?),
                b"gid" => extensions.gid = Some(integer(value)?),
                b"mtime" => extensions.mtime = Some(time(value).ok_or_else(|| bad("PAX mtime"))?),
                b"GNU.sparse.major" => major = Some(integer(value)?),
                b"GNU.sparse.name" => name = Some(value.to_vec()),
                b"GNU.sparse.size" | b"GNU.sparse.realsize" => real_size = Some(integer(value)?),
                b"GNU.sparse.map" => map = Some(sparse_map(value)?),
                b"GNU.sparse.offset" | b"GNU.sparse.numbytes" => {
                    return Err(bad("sparse files of PAX version 0.0 are not supported"));
                }
                _ => {
                    if let Some(attribute) = key.strip_prefix(b"SCHILY.xattr.") {
                        extensions.xattrs.push((attribute.to_vec(), value.to_vec()));
                    }
                }
            }
        }
        extensions.sparse = match (major, map, real_size) {
            (Some(1), _, Some(real_size)) => Sparse::InData { real_size, name },
            (_, Some(map), Some(real_size)) => Sparse::Inline { map, real_size, name },
            _ => Sparse::None,
        };
        Ok(extensions)
    }
}

fn bad(what: &str) -> UnpackError {
    UnpackError::Malformed(what.to_owned())
}

/// Splits off the first record: key, value, the rest.
fn record(data: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = data.iter().take(20).position(|byte| *byte == b' ')?;
    let length: usize = std::str::from_utf8(&data[..space]).ok()?.parse().ok()?;
    let body = data.get(space + 1..length)?;
    let body = body.strip_suffix(b"\n")?;
    let equals = body.iter().position(|byte| *byte == b'=')?;
    Some((&body[..equals], &body[equals + 1..], &data[length..]))
}

fn integer(value: &[u8]) -> Result<u64, UnpackError> {
    std::str::from_utf8(value).ok().and_then(|text| text.parse().ok()).ok_or_else(|| bad("number in a PAX record"))
}

/// `[-]seconds[.fraction]`, rounded down to the nanosecond.
fn time(value: &[u8]) -> Option<(i64, u32)> {
    let text = std::str::from_utf8(value).ok()?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = whole.parse().ok()?;
    if !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let nanoseconds = fraction
        .bytes()
        .chain(std::iter::repeat(b'0'))
        .take(9)
        .fold(0, |sum, digit| sum * 10 + u32::from(digit - b'0'));
    if whole.starts_with('-') && nanoseconds > 0 {
        return Some((seconds.checked_sub(1)?, 1_000_000_000 - nanoseconds));
    }
    Some((seconds, nanoseconds))
}

/// `offset,length,offset,length,…`
fn sparse_map(value: &[u8]) -> Result<Vec<(u64, u64)>, UnpackError> {
    let numbers = value.split(|byte| *byte == b',').map(integer).collect::<Result<Vec<u64>, _>>()?;
    let (pairs, rest) = numbers.as_chunks::<2>();
    if !rest.is_empty() {
        return Err(bad("sparse map"));
    }
    Ok(pairs.iter().map(|[offset, length]| (*offset, *length)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn line(key: &str, value: &[u8]) -> Vec<u8> {
        let body = key.len() + value.len() + 3;
        let mut length = body + 1;
        while length != body + length.to_string().len() {
            length = body + length.to_string().len();
        }
        let mut out = format!("{length} {key}=").into_bytes();
        out.extend_from_slice(value);
        out.push(b'\n');
        out
    }

    #[test]
    fn binary_values_with_newlines_are_kept_whole() {
        let mut data = line("SCHILY.xattr.security.capability", b"\x01\x00\n\n=\x00");
        data.extend(line("path", b"a\nb"));
        data.extend(line("mtime", b"-1.25"));
        data.extend(line("comment", b"x"));
        let extensions = Extensions::parse(&data).unwrap();
        assert_eq!(extensions.xattrs, [(b"security.capability".to_vec(), b"\x01\x00\n\n=\x00".to_vec())]);
        assert_eq!(extensions.path.as_deref(), Some(&b"a\nb"[..]));
        assert_eq!(extensions.mtime, Some((-2, 750_000_000)));
    }

    #[test]
    fn malformed_records_are_refused() {
        for data in [&b"5 a=b"[..], b"99999999999 a=b\n", b"x a=b\n", b"6 ab\n\n", b"0 a=b\n", b"2 a=b\n"] {
            assert!(Extensions::parse(data).is_err(), "{data:?}");
        }
        assert!(Extensions::parse(&line("mtime", b"1e9")).is_err());
        assert!(Extensions::parse(&line("size", b"-1")).is_err());
    }

    proptest! {
        #[test]
        fn never_panics(data in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Extensions::parse(&data);
        }
    }
}
