//! Points in time as text, in UTC, without a calendar library.

use std::time::{SystemTime, UNIX_EPOCH};

const SECOND: i64 = 1_000_000_000;
const DAY: i64 = 24 * 60 * 60;

/// Unix time in nanoseconds.
pub fn now() -> i64 {
    // Before 1970 is not worth an error; after 2262 neither.
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as i64)
}

/// `2026-11-21T08:30:00.123456789Z`, always with nine digits, so that the text sorts as the time does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rfc3339([u8; 30]);

impl Rfc3339 {
    /// From Unix time in nanoseconds (not negative).
    pub fn new(nanoseconds: i64) -> Rfc3339 {
        let mut text = *b"0000-00-00T00:00:00.000000000Z";
        let seconds = nanoseconds.div_euclid(SECOND);
        let (year, month, day) = civil(seconds.div_euclid(DAY));
        let [hour, minute, second] = clock(seconds);
        digits(&mut text[0..4], year);
        digits(&mut text[5..7], month);
        digits(&mut text[8..10], day);
        digits(&mut text[11..13], hour);
        digits(&mut text[14..16], minute);
        digits(&mut text[17..19], second);
        digits(&mut text[20..29], nanoseconds.rem_euclid(SECOND) as u32);
        Rfc3339(text)
    }

    /// The text, ASCII.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// `20261121-083000`: what the kubelet appends to the name of a rotated log.
pub fn file_suffix(seconds: i64) -> String {
    let (year, month, day) = civil(seconds.div_euclid(DAY));
    let [hour, minute, second] = clock(seconds);
    format!("{year:04}{month:02}{day:02}-{hour:02}{minute:02}{second:02}")
}

fn clock(seconds: i64) -> [u32; 3] {
    let of_day = seconds.rem_euclid(DAY) as u32;
    [of_day / 3600, of_day / 60 % 60, of_day % 60]
}

fn digits(place: &mut [u8], mut number: u32) {
    for digit in place.iter_mut().rev() {
        *digit = b'0' + (number % 10) as u8;
        number /= 10;
    }
}

/// Year, month and day of a day counted from 1970-01-01. Years are taken to begin in March, so that the leap day is the
/// last of its year and months follow a fixed rhythm of 153 days in five; 400 years always have 146,097 days.
fn civil(day: i64) -> (u32, u32, u32) {
    let from_march_0000 = day + 719_468;
    let (era, day_of_era) = (from_march_0000.div_euclid(146_097), from_march_0000.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day_of_month = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + i64::from(month <= 2);
    (year as u32, month as u32, day_of_month as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(nanoseconds: i64) -> String {
        String::from_utf8(Rfc3339::new(nanoseconds).as_bytes().to_vec()).unwrap()
    }

    #[test]
    fn known_times_read_as_expected() {
        assert_eq!(text(0), "1970-01-01T00:00:00.000000000Z");
        assert_eq!(text(951_782_399 * SECOND + 1), "2000-02-28T23:59:59.000000001Z");
        assert_eq!(text(951_782_400 * SECOND), "2000-02-29T00:00:00.000000000Z");
        assert_eq!(text(1_795_249_800_123_456_789), "2026-11-21T08:30:00.123456789Z");
        assert_eq!(text(4_107_542_399 * SECOND), "2100-02-28T23:59:59.000000000Z");
        assert_eq!(text(4_107_542_400 * SECOND), "2100-03-01T00:00:00.000000000Z");
        assert_eq!(file_suffix(1_795_249_800), "20261121-083000");
    }

    proptest::proptest! {
        #[test]
        fn any_time_agrees_with_a_calendar_library(nanoseconds in 0i64..i64::MAX) {
            let expected = jiff::Timestamp::from_nanosecond(nanoseconds.into()).unwrap();
            proptest::prop_assert_eq!(text(nanoseconds), format!("{expected:.9}"));
        }
    }
}
