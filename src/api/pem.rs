//! PEM (RFC 7468), as far as bundles of certificates need it.

use base64::{Engine, prelude::BASE64_STANDARD};

/// Label of certificates.
pub const CERTIFICATE: &str = "CERTIFICATE";

/// Bytes of text in a line.
const WIDTH: usize = 64;

/// What stands between a `BEGIN` and its `END`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    /// `CERTIFICATE`.
    pub label: String,
    /// There are lines like `Proc-Type: 4,ENCRYPTED` before the text.
    pub has_headers: bool,
    /// What the text stands for.
    pub bytes: Vec<u8>,
}

/// The blocks of a text. What is between them, and blocks that are none, are passed over, as by Go's `pem.Decode`.
pub fn blocks(text: &str) -> Vec<Block> {
    let mut blocks = Vec::new();
    let mut lines = text.lines().map(str::trim_end);
    while let Some(line) = lines.next() {
        let Some(label) = line.strip_prefix("-----BEGIN ").and_then(|rest| rest.strip_suffix("-----")) else {
            continue;
        };
        let end = format!("-----END {label}-----");
        // Only taken if there is an end: a torn block must not swallow those that follow.
        let body: Vec<&str> =
            lines.clone().take_while(|line| *line != end && !line.starts_with("-----BEGIN ")).collect();
        if lines.clone().nth(body.len()) != Some(&*end) {
            continue;
        }
        lines.nth(body.len());
        let headers = body.iter().take_while(|line| line.contains(':')).count();
        let text: String = body[headers..].iter().flat_map(|line| line.split_whitespace()).collect();
        if let Ok(bytes) = BASE64_STANDARD.decode(text) {
            blocks.push(Block { label: label.to_owned(), has_headers: headers > 0, bytes });
        }
    }
    blocks
}

/// A certificate as a block.
pub fn certificate(bytes: &[u8]) -> String {
    let text = BASE64_STANDARD.encode(bytes);
    let mut block = format!("-----BEGIN {CERTIFICATE}-----\n");
    for line in text.as_bytes().chunks(WIDTH) {
        block.push_str(&String::from_utf8_lossy(line));
        block.push('\n');
    }
    block.push_str(&format!("-----END {CERTIFICATE}-----\n"));
    block
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_found_among_other_text() {
        let one = certificate(&[7; 100]);
        assert_eq!(one.lines().map(str::len).max(), Some(WIDTH));
        let text = format!(
            "a comment\n{one}-----BEGIN CERTIFICATE-----\nAA\n{}\r\n-----BEGIN X-----\r\nA: b\r\n\r\nAQID\r\n-----END X-----\r\n",
            certificate(b"")
        );
        let block = |label: &str, has_headers, bytes: &[u8]| Block {
            label: label.to_owned(),
            has_headers,
            bytes: bytes.to_vec(),
        };
        assert_eq!(
            blocks(&text),
            [block(CERTIFICATE, false, &[7; 100]), block(CERTIFICATE, false, b""), block("X", true, &[1, 2, 3])]
        );
        assert_eq!(blocks("-----BEGIN CERTIFICATE-----\nAQID"), []);
        assert_eq!(blocks("-----BEGIN CERTIFICATE-----\n?\n-----END CERTIFICATE-----"), []);
    }
}
