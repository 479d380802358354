//! Durations and quantities in upstream's syntax.

use std::time::Duration;

pub use crate::api::duration::format_duration;
use crate::api::quantity::Quantity;

const UNITS: [(&str, u64); 8] = [
    ("ns", 1),
    ("us", 1_000),
    ("\u{b5}s", 1_000),
    ("\u{3bc}s", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
];

/// Reads a duration as Go's `time.ParseDuration` does: `20s`, `1m0s`, `1.5h`, `100ms`, `0`. Negative ones are read by
/// upstream but mean nothing in any field; they are refused here.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let invalid = || format!("expected a duration like 20s or 1m30s, found {text:?}");
    if text.starts_with('-') {
        return Err(format!("a duration cannot be negative, found {text:?}"));
    }
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    if rest == "0" {
        return Ok(Duration::ZERO);
    }
    if rest.is_empty() {
        return Err(invalid());
    }
    let mut total: u64 = 0;
    while !rest.is_empty() {
        let number_end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(invalid)?;
        let (number, tail) = rest.split_at(number_end);
        let unit_end = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit_end);
        let scale = UNITS.iter().find(|(name, _)| *name == unit).map(|(_, scale)| *scale).ok_or_else(invalid)?;
        let nanoseconds = scaled(number, scale).ok_or_else(invalid)?;
        total = total.checked_add(nanoseconds).filter(|total| *total <= i64::MAX as u64).ok_or_else(invalid)?;
        rest = tail;
    }
    Ok(Duration::from_nanos(total))
}

/// `number` (digits with at most one point) times `scale`, the rest below one nanosecond cut off.
fn scaled(number: &str, scale: u64) -> Option<u64> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
        return None;
    }
    let whole: u64 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    let mut value = whole.checked_mul(scale)?;
    let mut step = scale as f64;
    let mut below = 0.0;
    for digit in fraction.bytes() {
        step /= 10.0;
        below += f64::from(digit - b'0') * step;
    }
    value = value.checked_add(below as u64)?;
    Some(value)
}

/// Reads a resource quantity that counts something whole (bytes), rounded up: `10Mi`, `1.5G`, `1e6`, `500`.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let quantity = Quantity::parse(text).map_err(|_| format!("expected a quantity like 10Mi, found {text:?}"))?;
    u64::try_from(quantity.value()).map_err(|_| format!("a quantity cannot be negative here, found {text:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_upstream_reads_them() {
        for (text, nanoseconds) in [
            ("20s", 20_000_000_000),
            ("1m0s", 60_000_000_000),
            ("1h2m3.5s", 3_723_500_000_000),
            ("100ms", 100_000_000),
            ("1.5us", 1_500),
            ("2\u{b5}s", 2_000),
            (".5s", 500_000_000),
            ("0", 0),
            ("0s", 0),
            ("+3s", 3_000_000_000),
        ] {
            assert_eq!(parse_duration(text).unwrap().as_nanos(), nanoseconds, "{text}");
        }
        for text in ["", "20", "s", "1d", "-1s", "1..2s", "1s2", ".s", "9223372037s", "99999999999999999999h"] {
            assert!(parse_duration(text).is_err(), "{text:?} was accepted");
        }
    }

    #[test]
    fn durations_are_written_as_upstream_writes_them() {
        for text in ["1m0s", "20s", "100ms", "0s", "1h0m0s", "1h2m3.5s", "1.5\u{b5}s", "2m30s"] {
            assert_eq!(format_duration(parse_duration(text).unwrap()), text);
        }
    }

    #[test]
    fn quantities_are_read_as_upstream_reads_them() {
        for (text, bytes) in [
            ("10Mi", 10 << 20),
            ("1.5G", 1_500_000_000),
            ("1e6", 1_000_000),
            ("500", 500),
            ("100m", 1),
            ("0.1", 1),
            ("2Ki", 2048),
            ("1Ei", 1 << 60),
        ] {
            assert_eq!(parse_bytes(text).unwrap(), bytes, "{text}");
        }
        for text in ["", "Mi", "1 Mi", "10MiB", "-1", "1.2.3"] {
            assert!(parse_bytes(text).is_err(), "{text:?} was accepted");
        }
    }
}
