//! The protobuf wire format: fields one after the other, each with its number.

use super::WireError;

/// What a field holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Field<'b> {
    /// A number.
    Varint(u64),
    /// Text, bytes, or another message.
    Bytes(&'b [u8]),
    /// Four or eight bytes, which no field of the API has.
    Fixed,
}

/// Reads a message.
pub struct Reader<'b> {
    rest: &'b [u8],
    /// What is being read, for errors.
    of: &'static str,
}

impl<'b> Reader<'b> {
    /// Of these bytes.
    pub fn new(bytes: &'b [u8], of: &'static str) -> Reader<'b> {
        Reader { rest: bytes, of }
    }

    /// The next field with its number; `None` at the end.
    ///
    /// # Errors
    /// The bytes end too early, or are no fields.
    pub fn next(&mut self) -> Result<Option<(u32, Field<'b>)>, WireError> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let malformed = WireError::Malformed(self.of);
        let key = self.varint()?;
        let number = u32::try_from(key >> 3).ok().filter(|number| *number != 0).ok_or(malformed.clone())?;
        let field = match key & 7 {
            0 => Field::Varint(self.varint()?),
            1 => self.take(8).map(|_| Field::Fixed)?,
            2 => {
                let length = usize::try_from(self.varint()?).map_err(|_| malformed)?;
                Field::Bytes(self.take(length)?)
            }
            5 => self.take(4).map(|_| Field::Fixed)?,
            _ => return Err(malformed),
        };
        Ok(Some((number, field)))
    }

    fn take(&mut self, length: usize) -> Result<&'b [u8], WireError> {
        let (taken, rest) = self.rest.split_at_checked(length).ok_or(WireError::Malformed(self.of))?;
        self.rest = rest;
        Ok(taken)
    }

    fn varint(&mut self) -> Result<u64, WireError> {
        let mut value = 0;
        for (index, byte) in self.rest.iter().take(10).enumerate() {
            value |= u64::from(byte & 0x7f) << (7 * index);
            if byte & 0x80 == 0 {
                self.rest = &self.rest[index + 1..];
                return Ok(value);
            }
        }
        Err(WireError::Malformed(self.of))
    }
}
