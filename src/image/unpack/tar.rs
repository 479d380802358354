//! Reads tar streams: old, ustar, GNU (long names, sparse files) and PAX.
//!
//! The `tar` crate decodes the fields of a header. The framing is here, because its own iterator reads extension
//! entries of any size into memory and splits PAX records at newlines, which binary values (`security.capability`)
//! contain. Every buffer here has a limit.

use std::io::{self, BufReader, Read, Seek};

use tar::{EntryType, Header};

use super::{UnpackError, pax};

const BLOCK: usize = 512;
/// PATH_MAX: nothing longer can be opened in one call, and no builder writes it.
const NAME_LIMIT: u64 = 4096;
/// A PAX header holds names and extended attributes; the kernel's limit for one attribute is 64 KiB.
const PAX_LIMIT: u64 = 1 << 20;
/// Data segments of one sparse file.
const SPARSE_LIMIT: usize = 1 << 16;

/// What an entry makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A regular file with data.
    File,
    /// A directory.
    Directory,
    /// A symbolic link to `link`.
    Symlink,
    /// Another name of `link`.
    Hardlink,
    /// A character device.
    Character,
    /// A block device.
    Block,
    /// A named pipe.
    Fifo,
}

/// One entry, extensions applied.
#[derive(Debug)]
pub struct Entry {
    /// As written, not yet cleaned.
    pub path: Vec<u8>,
    /// Target of a symbolic or hard link.
    pub link: Vec<u8>,
    /// What it is.
    pub kind: Kind,
    /// Size of the file once unpacked.
    pub size: u64,
    /// Permission bits, setuid, setgid and sticky included.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time: seconds, nanoseconds.
    pub mtime: (i64, u32),
    /// Device number: major, minor.
    pub device: (u32, u32),
    /// Extended attributes.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// For a sparse file, `(offset, length)` of the pieces the data consists of, ascending.
    pub sparse: Option<Vec<(u64, u64)>>,
}

/// A tar stream. Reading from it gives the data of the current entry.
pub struct TarReader<R> {
    inner: R,
    /// Data of the current entry not read yet.
    remaining: u64,
    /// Bytes up to the next block after it.
    padding: u64,
    /// Moves on by a number of bytes; tells how many there were.
    skip: fn(&mut R, u64) -> io::Result<u64>,
}

impl<R: Read> Read for TarReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let limit = usize::try_from(self.remaining).unwrap_or(usize::MAX).min(buffer.len());
        if limit == 0 {
            return Ok(0);
        }
        let read = self.inner.read(&mut buffer[..limit])?;
        if read == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the archive ends within a file"));
        }
        self.remaining -= read as u64;
        Ok(read)
    }
}

impl<R: Read + Seek> TarReader<BufReader<R>> {
    /// Like [`TarReader::new`], jumping over data that is not read. A file that ends early is not noticed on the way.
    pub fn seekable(inner: BufReader<R>) -> TarReader<BufReader<R>> {
        let skip = |inner: &mut BufReader<R>, length: u64| {
            let distance = i64::try_from(length).map_err(|_| io::ErrorKind::InvalidData)?;
            inner.seek_relative(distance).map(|()| length)
        };
        TarReader { inner, remaining: 0, padding: 0, skip }
    }

    /// Where the data of the current entry is.
    pub fn position(&mut self) -> io::Result<u64> {
        self.inner.stream_position()
    }
}

impl<R: Read> TarReader<R> {
    /// Reads from the start of an archive.
    pub fn new(inner: R) -> TarReader<R> {
        let skip = |inner: &mut R, length: u64| io::copy(&mut inner.take(length), &mut io::sink());
        TarReader { inner, remaining: 0, padding: 0, skip }
    }

    /// The next entry that makes something; `None` at the end. Skips what is left of the current one.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, UnpackError> {
        let mut long_path = None;
        let mut long_link = None;
        let mut extensions = pax::Extensions::default();
        loop {
            self.skip()?;
            let mut block = [0u8; BLOCK];
            if !self.read_block(&mut block)? || block.iter().all(|byte| *byte == 0) {
                return Ok(None);
            }
            let header = Header::from_byte_slice(&block);
            check(header, &block)?;
            let size = number(&header.as_old().size, header.entry_size())?;
            match header.entry_type() {
                EntryType::GNULongName => long_path = Some(self.read_name(size)?),
                EntryType::GNULongLink => long_link = Some(self.read_name(size)?),
                EntryType::XHeader => extensions = pax::Extensions::parse(&self.read_small(size, PAX_LIMIT)?)?,
                // Defaults for the whole archive: builders only put comments there, and no unpacker applies them.
                EntryType::XGlobalHeader => self.start(size)?,
                kind => return self.entry(header, kind, size, long_path, long_link, extensions).map(Some),
            }
        }
    }

    fn entry(
        &mut self,
        header: &Header,
        kind: EntryType,
        size: u64,
        long_path: Option<Vec<u8>>,
        long_link: Option<Vec<u8>>,
        extensions: pax::Extensions,
    ) -> Result<Entry, UnpackError> {
        let path = extensions.path.or(long_path).unwrap_or_else(|| header.path_bytes().into_owned());
        let link = extensions
            .link
            .or(long_link)
            .unwrap_or_else(|| header.link_name_bytes().map(|link| link.into_owned()).unwrap_or_default());
        for name in [&path, &link] {
            if name.len() as u64 > NAME_LIMIT {
                return Err(UnpackError::TooLarge { what: "a name", limit: NAME_LIMIT });
            }
            if name.contains(&0) {
                return Err(UnpackError::Malformed("a name contains a NUL byte".into()));
            }
        }
        let data = extensions.size.unwrap_or(size);
        let is_directory_name = path.ends_with(b"/");
        let entry_kind = match kind {
            // Archives from before ustar mark a directory only by the slash.
            EntryType::Regular | EntryType::Continuous if is_directory_name => Kind::Directory,
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => Kind::File,
            EntryType::Directory => Kind::Directory,
            EntryType::Symlink => Kind::Symlink,
            EntryType::Link => Kind::Hardlink,
            EntryType::Char => Kind::Character,
            EntryType::Block => Kind::Block,
            EntryType::Fifo => Kind::Fifo,
            other => {
                return Err(UnpackError::Malformed(format!(
                    "{}: entry type {:?} is not supported",
                    String::from_utf8_lossy(&path),
                    char::from(other.as_byte())
                )));
            }
        };
        let id = |number: u64| u32::try_from(number).map_err(|_| UnpackError::Malformed(format!("owner {number}")));
        let device = |value: io::Result<Option<u32>>| value.ok().flatten().unwrap_or(0);
        let fields = header.as_old();
        let mut entry = Entry {
            path,
            link,
            kind: entry_kind,
            size: data,
            mode: number(&fields.mode, header.mode().map(u64::from))? as u32 & 0o7777,
            uid: id(match extensions.uid {
                Some(uid) => uid,
                None => number(&fields.uid, header.uid())?,
            })?,
            gid: id(match extensions.gid {
                Some(gid) => gid,
                None => number(&fields.gid, header.gid())?,
            })?,
            mtime: match extensions.mtime {
                Some(mtime) => mtime,
                // Times before 1970 are written in base 256 as two's complement.
                None => (number(&fields.mtime, header.mtime())?.cast_signed(), 0),
            },
            device: (device(header.device_major()), device(header.device_minor())),
            xattrs: extensions.xattrs,
            sparse: None,
        };
        // Links of some writers carry the size of their target but no data.
        if !matches!(entry.kind, Kind::File) {
            entry.size = 0;
            return match entry.kind {
                Kind::Hardlink if extensions.size.is_none() && size > 0 && header.as_ustar().is_none() => {
                    self.start(0).map(|()| entry)
                }
                _ => self.start(data).map(|()| entry),
            };
        }
        if kind == EntryType::GNUSparse {
            let (map, real) = self.gnu_sparse_map(header)?;
            self.start(data)?;
            (entry.sparse, entry.size) = (Some(map), real);
        } else {
            self.start(data)?;
            match extensions.sparse {
                pax::Sparse::None => {}
                pax::Sparse::Inline { map, real_size, name } => {
                    (entry.sparse, entry.size) = (Some(map), real_size);
                    entry.path = name.unwrap_or(entry.path);
                }
                pax::Sparse::InData { real_size, name } => {
                    (entry.sparse, entry.size) = (Some(self.pax_sparse_map()?), real_size);
                    entry.path = name.unwrap_or(entry.path);
                }
            }
        }
        if let Some(map) = &entry.sparse {
            check_sparse(map, entry.size, self.remaining)?;
        }
        Ok(entry)
    }

    /// The map of an old GNU sparse file: four pieces in the header, 21 in each extension block.
    fn gnu_sparse_map(&mut self, header: &Header) -> Result<(Vec<(u64, u64)>, u64), UnpackError> {
        let gnu = header.as_gnu().ok_or_else(|| UnpackError::Malformed("sparse file without a GNU header".into()))?;
        let real = gnu.real_size().map_err(malformed)?;
        let mut map = Vec::new();
        let mut add = |pieces: &[tar::GnuSparseHeader]| -> Result<(), UnpackError> {
            for piece in pieces.iter().filter(|piece| !piece.is_empty()) {
                if map.len() >= SPARSE_LIMIT {
                    return Err(UnpackError::TooLarge { what: "the map of a sparse file", limit: SPARSE_LIMIT as u64 });
                }
                map.push((piece.offset().map_err(malformed)?, piece.length().map_err(malformed)?));
            }
            Ok(())
        };
        add(&gnu.sparse)?;
        let mut more = gnu.is_extended();
        while more {
            let mut extension = tar::GnuExtSparseHeader::new();
            self.inner.read_exact(extension.as_mut_bytes()).map_err(truncated)?;
            add(extension.sparse())?;
            more = extension.is_extended();
        }
        Ok((map, real))
    }

    /// The map of a PAX 1.0 sparse file: decimal numbers, one a line, at the start of the data, padded to a block.
    fn pax_sparse_map(&mut self) -> Result<Vec<(u64, u64)>, UnpackError> {
        let mut read = 0usize;
        let mut number = |reader: &mut TarReader<R>| -> Result<u64, UnpackError> {
            let mut value = 0u64;
            loop {
                let mut byte = [0u8];
                reader.read_exact(&mut byte).map_err(truncated)?;
                read += 1;
                match byte[0] {
                    b'\n' => return Ok(value),
                    digit @ b'0'..=b'9' => {
                        value = value
                            .checked_mul(10)
                            .and_then(|value| value.checked_add(u64::from(digit - b'0')))
                            .ok_or_else(|| UnpackError::Malformed("number in a sparse map".into()))?;
                    }
                    _ => return Err(UnpackError::Malformed("sparse map".into())),
                }
            }
        };
        let count = number(self)?;
        if count > SPARSE_LIMIT as u64 {
            return Err(UnpackError::TooLarge { what: "the map of a sparse file", limit: SPARSE_LIMIT as u64 });
        }
        let mut map = Vec::new();
        for _ in 0..count {
            map.push((number(self)?, number(self)?));
        }
        let padding = (BLOCK - read % BLOCK) % BLOCK;
        let mut rest = [0u8; BLOCK];
        self.read_exact(&mut rest[..padding]).map_err(truncated)?;
        Ok(map)
    }

    fn start(&mut self, size: u64) -> Result<(), UnpackError> {
        self.remaining = size;
        self.padding = (BLOCK as u64 - size % BLOCK as u64) % BLOCK as u64;
        Ok(())
    }

    fn skip(&mut self) -> Result<(), UnpackError> {
        let length = self
            .remaining
            .checked_add(self.padding)
            .ok_or_else(|| UnpackError::Malformed("size of an entry".into()))?;
        let data = self.remaining;
        (self.remaining, self.padding) = (0, 0);
        if length > 0 {
            let skipped = (self.skip)(&mut self.inner, length).map_err(read_error)?;
            // Some builders (umoci) end a layer right after the data of its last file, and no reader minds.
            if skipped < data {
                return Err(UnpackError::Truncated);
            }
        }
        Ok(())
    }

    fn read_small(&mut self, size: u64, limit: u64) -> Result<Vec<u8>, UnpackError> {
        if size > limit {
            return Err(UnpackError::TooLarge { what: "an extended header", limit });
        }
        self.start(size)?;
        let mut data = vec![0u8; size as usize];
        self.read_exact(&mut data).map_err(truncated)?;
        Ok(data)
    }

    fn read_name(&mut self, size: u64) -> Result<Vec<u8>, UnpackError> {
        let mut name = self.read_small(size, NAME_LIMIT + 1)?;
        while name.last() == Some(&0) {
            name.pop();
        }
        Ok(name)
    }

    /// `false` at a clean end of the stream.
    fn read_block(&mut self, block: &mut [u8; BLOCK]) -> Result<bool, UnpackError> {
        let mut filled = 0;
        while filled < BLOCK {
            match self.inner.read(&mut block[filled..]) {
                Ok(0) if filled == 0 => return Ok(false),
                Ok(0) => return Err(UnpackError::Truncated),
                Ok(read) => filled += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(UnpackError::Read(error)),
            }
        }
        Ok(true)
    }
}

fn check(header: &Header, block: &[u8; BLOCK]) -> Result<(), UnpackError> {
    // The sum is taken with the checksum field (offset 148, 8 bytes) read as spaces.
    let sum: u32 =
        block.iter().enumerate().map(|(i, byte)| if (148..156).contains(&i) { 32 } else { u32::from(*byte) }).sum();
    match header.cksum() {
        Ok(expected) if expected == sum => Ok(()),
        _ => Err(UnpackError::Malformed("header checksum does not match: not a tar archive, or damaged".into())),
    }
}

fn check_sparse(map: &[(u64, u64)], size: u64, data: u64) -> Result<(), UnpackError> {
    let mut end = 0u64;
    let mut total = 0u64;
    for (offset, length) in map {
        let next = offset.checked_add(*length).filter(|next| *offset >= end && *next <= size);
        end = next.ok_or_else(|| UnpackError::Malformed("sparse map out of order".into()))?;
        total += length;
    }
    if total == data { Ok(()) } else { Err(UnpackError::Malformed("sparse map does not match the data".into())) }
}

/// A numeric field; one that was left empty is zero, as every other reader of tar has it.
fn number(field: &[u8], value: io::Result<u64>) -> Result<u64, UnpackError> {
    if field.iter().all(|byte| matches!(byte, 0 | b' ')) {
        return Ok(0);
    }
    value.map_err(malformed)
}

fn malformed(error: io::Error) -> UnpackError {
    UnpackError::Malformed(error.to_string())
}

pub(super) fn read_error(error: io::Error) -> UnpackError {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => UnpackError::Truncated,
        _ => UnpackError::Read(error),
    }
}

fn truncated(error: io::Error) -> UnpackError {
    read_error(error)
}
