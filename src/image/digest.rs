//! Content digests: `sha256:<hex>` and `sha512:<hex>`, and readers that compute them on the way.

use std::{
    fmt,
    io::{self, BufRead, Read},
};

use aws_lc_rs::digest::{Context, SHA256, SHA512};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A digest in its canonical form: a known algorithm and lower-case hexadecimal digits of the right number, so that it
/// may be used as a file name.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest(Box<str>);

/// A string is not a digest we can check.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DigestError {
    /// Not `algorithm:hex`, or not the number of lower-case digits the algorithm has.
    #[error("malformed digest {0:?}")]
    Malformed(String),
    /// Well-formed, but neither sha256 nor sha512.
    #[error("digest algorithm {0:?} is not supported")]
    Algorithm(String),
}

impl Digest {
    /// Checks and takes `algorithm:hex`.
    pub fn parse(text: &str) -> Result<Digest, DigestError> {
        let (algorithm, hex) = text.split_once(':').ok_or_else(|| DigestError::Malformed(text.to_owned()))?;
        let digits = match algorithm {
            "sha256" => 64,
            "sha512" => 128,
            _ => return Err(DigestError::Algorithm(algorithm.to_owned())),
        };
        if hex.len() != digits || !hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(DigestError::Malformed(text.to_owned()));
        }
        Ok(Digest(text.into()))
    }

    /// SHA-256 of `bytes`.
    pub fn of(bytes: &[u8]) -> Digest {
        let mut hasher = Hasher::sha256();
        hasher.update(bytes);
        hasher.finish()
    }

    /// Digest of `bytes` with this digest's algorithm.
    pub fn same_algorithm_of(&self, bytes: &[u8]) -> Digest {
        let mut hasher = Hasher::like(self);
        hasher.update(bytes);
        hasher.finish()
    }

    /// `sha256` or `sha512`.
    pub fn algorithm(&self) -> &str {
        self.0.split_once(':').map_or("", |(algorithm, _)| algorithm)
    }

    /// The digits. Those of the two algorithms differ in number, so they name a file without the algorithm.
    pub fn hex(&self) -> &str {
        self.0.split_once(':').map_or("", |(_, hex)| hex)
    }

    /// `algorithm:hex`.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Digest, D::Error> {
        let text = String::deserialize(deserializer)?;
        Digest::parse(&text).map_err(serde::de::Error::custom)
    }
}

/// A digest being computed.
pub struct Hasher {
    context: Context,
    name: &'static str,
}

impl Hasher {
    /// SHA-256.
    pub fn sha256() -> Hasher {
        Hasher { context: Context::new(&SHA256), name: "sha256" }
    }

    /// The algorithm of `digest`.
    pub fn like(digest: &Digest) -> Hasher {
        match digest.algorithm() {
            "sha512" => Hasher { context: Context::new(&SHA512), name: "sha512" },
            _ => Hasher::sha256(),
        }
    }

    /// Adds bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.context.update(bytes);
    }

    /// The digest of everything added.
    pub fn finish(self) -> Digest {
        use std::fmt::Write;
        let value = self.context.finish();
        let mut text = String::with_capacity(8 + 2 * value.as_ref().len());
        text.push_str(self.name);
        text.push(':');
        for byte in value.as_ref() {
            let _ = write!(text, "{byte:02x}");
        }
        Digest(text.into())
    }
}

/// Passes bytes through, counting them and (with a hasher) computing their digest.
pub struct HashingReader<R> {
    inner: R,
    hasher: Option<Hasher>,
    count: u64,
}

impl<R> HashingReader<R> {
    /// `hasher`: `None` to count only.
    pub fn new(inner: R, hasher: Option<Hasher>) -> HashingReader<R> {
        HashingReader { inner, hasher, count: 0 }
    }

    /// Bytes seen and, when there was a hasher, their digest.
    pub fn finish(self) -> (u64, Option<Digest>) {
        (self.count, self.hasher.map(Hasher::finish))
    }
}

impl<R: Read> Read for HashingReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        if let Some(hasher) = &mut self.hasher {
            hasher.update(&buffer[..read]);
        }
        self.count += read as u64;
        Ok(read)
    }
}

impl<R: BufRead> BufRead for HashingReader<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.inner.fill_buf()
    }

    fn consume(&mut self, amount: usize) {
        // The bytes consumed are those of the last `fill_buf`, which returns the same again without reading.
        if let (Some(hasher), Ok(buffer)) = (&mut self.hasher, self.inner.fill_buf()) {
            hasher.update(&buffer[..amount.min(buffer.len())]);
        }
        self.count += amount as u64;
        self.inner.consume(amount);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn digests_are_parsed_strictly_because_they_become_file_names() {
        assert_eq!(Digest::parse(EMPTY).unwrap(), Digest::of(b""));
        assert_eq!(Digest::of(b"").hex().len(), 64);
        for bad in ["", "sha256", "sha256:", "sha256:../../etc/passwd", &EMPTY.to_uppercase(), &EMPTY[..70]] {
            assert!(Digest::parse(bad).is_err(), "{bad}");
        }
        assert_eq!(Digest::parse("md5:00"), Err(DigestError::Algorithm("md5".into())));
        let long = Digest::parse(&format!("sha512:{}", "0".repeat(128))).unwrap();
        assert_eq!(long.same_algorithm_of(b"x").algorithm(), "sha512");
    }

    #[test]
    fn both_ways_of_reading_hash_the_same_bytes() {
        let data = vec![7u8; 100_000];
        let mut by_read = HashingReader::new(&data[..], Some(Hasher::sha256()));
        io::copy(&mut by_read, &mut io::sink()).unwrap();
        let mut by_buffer = HashingReader::new(io::BufReader::with_capacity(333, &data[..]), Some(Hasher::sha256()));
        loop {
            let length = by_buffer.fill_buf().unwrap().len().min(100);
            if length == 0 {
                break;
            }
            by_buffer.consume(length);
        }
        let expected = (100_000, Some(Digest::of(&data)));
        assert_eq!(by_read.finish(), expected);
        assert_eq!(by_buffer.finish(), expected);
    }
}
