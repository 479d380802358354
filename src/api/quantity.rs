//! Resource quantities (`500m`, `64Mi`, `1.5`, `1e3`), held exactly.
//!
//! Grammar and rounding follow the documentation of `k8s.io/apimachinery/pkg/api/resource.Quantity`: a number with
//! a decimal suffix (n u m k M G T P E), a binary one (Ki Mi Gi Ti Pi Ei) or an exponent. What is finer than a
//! nano-unit is rounded away from zero, so that whoever asks for something gets something.

use std::{
    cmp::Ordering,
    fmt,
    hash::{Hash, Hasher},
    ops::{Add, Neg},
    str::FromStr,
};

use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;

/// Nano-units in one unit.
const NANO: i128 = 1_000_000_000;
/// Nano-units in one milli-unit.
const NANO_PER_MILLI: i128 = 1_000_000;
/// Digits of the largest power of ten in an `i128`, less one: more cannot be held, nor is it meaningful.
const MAX_DIGITS: i64 = 38;

/// Why a text is not a quantity. The messages are upstream's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    /// It does not have the form of one.
    #[error("quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'")]
    Format,
    /// The number before the suffix is none.
    #[error("unable to parse numeric part of quantity")]
    Number,
    /// The suffix is unknown.
    #[error("unable to parse quantity's suffix")]
    Suffix,
}

/// How a quantity is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// `1k`, `500m`.
    Decimal,
    /// `1Ki`.
    Binary,
    /// `1e3`.
    Exponent,
}

/// An amount of a resource, exact to a nano-unit. Equality and order are those of the amount, not of the text.
/// Amounts beyond about 10^29 units are held as that.
#[derive(Debug, Clone, Copy)]
pub struct Quantity {
    nanos: i128,
    form: Form,
}

impl Quantity {
    /// Nothing.
    pub const ZERO: Quantity = Quantity { nanos: 0, form: Form::Decimal };

    /// Nothing.
    pub fn zero() -> Quantity {
        Quantity::ZERO
    }

    /// `units` whole units, written with decimal suffixes.
    pub fn from_units(units: i64) -> Quantity {
        Quantity { nanos: i128::from(units) * NANO, form: Form::Decimal }
    }

    /// `milli` thousandths (CPU), written with decimal suffixes.
    pub fn from_milli(milli: i64) -> Quantity {
        Quantity { nanos: i128::from(milli) * NANO_PER_MILLI, form: Form::Decimal }
    }

    /// `bytes` whole units, written with binary suffixes (memory).
    pub fn from_bytes(bytes: i64) -> Quantity {
        Quantity { nanos: i128::from(bytes) * NANO, form: Form::Binary }
    }

    /// Reads a quantity as it stands in a manifest.
    pub fn parse(text: &str) -> Result<Quantity, QuantityError> {
        let (negative, unsigned) = match text.as_bytes().first() {
            None => return Err(QuantityError::Format),
            Some(b'-') => (true, &text[1..]),
            Some(b'+') => (false, &text[1..]),
            Some(_) => (false, text),
        };
        let end = unsigned.bytes().take_while(u8::is_ascii_digit).count();
        let (whole, rest) = unsigned.split_at(end);
        let (fraction, suffix) = match rest.strip_prefix('.') {
            Some(rest) => rest.split_at(rest.bytes().take_while(u8::is_ascii_digit).count()),
            None => ("", rest),
        };
        check_suffix_form(suffix)?;
        if whole.is_empty() && fraction.is_empty() {
            return Err(QuantityError::Number);
        }
        let (form, multiplier) = read_suffix(suffix)?;
        let digits = Digits::new(whole, fraction);
        let nanos = match multiplier {
            Multiplier::PowerOfTen(exponent) => digits.nanos(exponent, 0),
            // Upstream caps binary amounts at the largest int64 and only those.
            Multiplier::PowerOfTwo(exponent) => digits.nanos(0, exponent).min(i128::from(i64::MAX) * NANO),
        };
        Ok(Quantity { nanos: if negative { -nanos } else { nanos }, form })
    }

    /// Whole units, rounded away from zero; the nearest `i64` when out of its range.
    pub fn value(&self) -> i64 {
        self.scaled(NANO)
    }

    /// Thousandths of a unit, rounded away from zero; the nearest `i64` when out of its range.
    pub fn milli(&self) -> i64 {
        self.scaled(NANO_PER_MILLI)
    }

    /// Billionths of a unit, exact.
    pub fn nanos(&self) -> i128 {
        self.nanos
    }

    /// Whether it is nothing, however written.
    pub fn is_zero(&self) -> bool {
        self.nanos == 0
    }

    /// Whether it is below nothing.
    pub fn is_negative(&self) -> bool {
        self.nanos < 0
    }

    /// Whether it is a whole number of units (extended resources and hugepages must be).
    pub fn is_whole(&self) -> bool {
        self.nanos % NANO == 0
    }

    /// Whether it is a whole number of thousandths (nothing finer can be asked of the CPU).
    pub fn is_whole_milli(&self) -> bool {
        self.nanos % NANO_PER_MILLI == 0
    }

    fn scaled(&self, unit: i128) -> i64 {
        let rounded = self.nanos / unit + (self.nanos % unit).signum();
        i64::try_from(rounded).unwrap_or(if rounded < 0 { i64::MIN } else { i64::MAX })
    }
}

/// The characters a suffix may be made of: letters, then a sign, then digits. Whether it means something is
/// decided by [`read_suffix`].
fn check_suffix_form(suffix: &str) -> Result<(), QuantityError> {
    let rest = suffix.trim_start_matches(['e', 'E', 'i', 'n', 'u', 'm', 'k', 'K', 'M', 'G', 'T', 'P']);
    let rest = rest.strip_prefix(['+', '-']).unwrap_or(rest);
    if rest.bytes().all(|byte| byte.is_ascii_digit()) { Ok(()) } else { Err(QuantityError::Format) }
}

/// What the number before a suffix is multiplied by.
enum Multiplier {
    PowerOfTen(i64),
    PowerOfTwo(u32),
}

fn read_suffix(suffix: &str) -> Result<(Form, Multiplier), QuantityError> {
    let decimal = |exponent| Ok((Form::Decimal, Multiplier::PowerOfTen(exponent)));
    let binary = |exponent| Ok((Form::Binary, Multiplier::PowerOfTwo(exponent)));
    match suffix {
        "n" => decimal(-9),
        "u" => decimal(-6),
        "m" => decimal(-3),
        "" => decimal(0),
        "k" => decimal(3),
        "M" => decimal(6),
        "G" => decimal(9),
        "T" => decimal(12),
        "P" => decimal(15),
        "E" => decimal(18),
        "Ki" => binary(10),
        "Mi" => binary(20),
        "Gi" => binary(30),
        "Ti" => binary(40),
        "Pi" => binary(50),
        "Ei" => binary(60),
        _ => {
            let exponent = suffix.strip_prefix(['e', 'E']).ok_or(QuantityError::Suffix)?;
            let exponent = exponent.parse::<i64>().map_err(|_| QuantityError::Suffix)?;
            Ok((Form::Exponent, Multiplier::PowerOfTen(exponent)))
        }
    }
}

/// An unsigned decimal number as digits and the place of its point, before any suffix.
struct Digits {
    /// Without leading and trailing zeros.
    digits: String,
    /// The number is `digits` times ten to this.
    exponent: i64,
}

impl Digits {
    fn new(whole: &str, fraction: &str) -> Digits {
        let all = format!("{whole}{fraction}");
        let trimmed = all.trim_end_matches('0');
        let zeros = (all.len() - trimmed.len()) as i64;
        Digits { digits: trimmed.trim_start_matches('0').to_owned(), exponent: zeros - fraction.len() as i64 }
    }

    /// The number times `10^power_of_ten * 2^power_of_two` in nano-units, rounded up, capped at the largest `i128`.
    fn nanos(&self, power_of_ten: i64, power_of_two: u32) -> i128 {
        if self.digits.is_empty() {
            return 0;
        }
        let length = self.digits.len() as i64;
        let exponent = self.exponent.saturating_add(power_of_ten).saturating_add(9);
        // Where the first digit stands, in nano-units.
        let magnitude = exponent.saturating_add(length);
        if magnitude > MAX_DIGITS {
            return i128::MAX;
        }
        // A binary factor is at most 2^60 < 10^19: below this even the product is less than one nano-unit.
        if magnitude < -19 {
            return 1;
        }
        // More digits than fit cannot matter but for being there at all: they round the amount up.
        let kept = self.digits.len().min(MAX_DIGITS as usize);
        let mut rounded = kept < self.digits.len();
        let dropped = (self.digits.len() - kept) as i64;
        let mut amount = self.digits[..kept].bytes().fold(0_i128, |sum, byte| sum * 10 + i128::from(byte - b'0'));
        let mut exponent = exponent.saturating_add(dropped);
        // Multiply by the factor and divide by ten in turns, so that nothing overflows before it has to.
        for _ in 0..power_of_two {
            while amount > i128::MAX / 2 {
                if exponent >= 0 {
                    return i128::MAX;
                }
                rounded |= amount % 10 != 0;
                amount /= 10;
                exponent += 1;
            }
            amount *= 2;
        }
        for _ in 0..exponent.max(0) {
            let Some(product) = amount.checked_mul(10) else { return i128::MAX };
            amount = product;
        }
        for _ in exponent..0 {
            rounded |= amount % 10 != 0;
            amount /= 10;
        }
        amount.saturating_add(i128::from(rounded))
    }
}

impl Default for Quantity {
    fn default() -> Quantity {
        Quantity::ZERO
    }
}

impl FromStr for Quantity {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<Quantity, QuantityError> {
        Quantity::parse(text)
    }
}

impl TryFrom<&ApiQuantity> for Quantity {
    type Error = QuantityError;

    fn try_from(quantity: &ApiQuantity) -> Result<Quantity, QuantityError> {
        Quantity::parse(&quantity.0)
    }
}

impl From<Quantity> for ApiQuantity {
    fn from(quantity: Quantity) -> ApiQuantity {
        ApiQuantity(quantity.to_string())
    }
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Quantity) -> bool {
        self.nanos == other.nanos
    }
}

impl Eq for Quantity {}

impl Hash for Quantity {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.nanos.hash(state);
    }
}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Quantity) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Quantity {
    fn cmp(&self, other: &Quantity) -> Ordering {
        self.nanos.cmp(&other.nanos)
    }
}

/// The sum is written as the first summand is, unless that is zero.
impl Add for Quantity {
    type Output = Quantity;

    fn add(self, other: Quantity) -> Quantity {
        let form = if self.nanos == 0 { other.form } else { self.form };
        Quantity { nanos: self.nanos.saturating_add(other.nanos), form }
    }
}

impl Neg for Quantity {
    type Output = Quantity;

    fn neg(self) -> Quantity {
        Quantity { nanos: self.nanos.saturating_neg(), form: self.form }
    }
}

impl std::iter::Sum for Quantity {
    fn sum<I: Iterator<Item = Quantity>>(iter: I) -> Quantity {
        iter.fold(Quantity::ZERO, Add::add)
    }
}

/// The canonical form: no fraction, the largest suffix that allows it. A binary amount below 1024 or not whole is
/// written decimally.
impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nanos == 0 {
            return f.write_str("0");
        }
        if self.form == Form::Binary && self.is_whole() && self.nanos.abs() >= 1024 * NANO {
            let mut number = self.nanos / NANO;
            let mut step = 0;
            while number % 1024 == 0 && step < 6 {
                number /= 1024;
                step += 1;
            }
            return write!(f, "{number}{}", ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"][step]);
        }
        let mut number = self.nanos;
        let mut exponent = -9;
        while number % 1000 == 0 {
            number /= 1000;
            exponent += 3;
        }
        match (self.form, exponent) {
            (_, 0) => write!(f, "{number}"),
            (Form::Exponent, _) | (_, 19..) => write!(f, "{number}e{exponent}"),
            (_, -9) => write!(f, "{number}n"),
            (_, -6) => write!(f, "{number}u"),
            (_, -3) => write!(f, "{number}m"),
            (_, 3) => write!(f, "{number}k"),
            (_, 6) => write!(f, "{number}M"),
            (_, 9) => write!(f, "{number}G"),
            (_, 12) => write!(f, "{number}T"),
            (_, 15) => write!(f, "{number}P"),
            (_, _) => write!(f, "{number}E"),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn amounts_are_exact_and_round_away_from_zero() {
        for (text, value, milli) in [
            ("0", 0, 0),
            ("100m", 1, 100),
            ("1", 1, 1000),
            ("1.5", 2, 1500),
            ("-1.5", -2, -1500),
            (".5", 1, 500),
            ("1.", 1, 1000),
            ("+3", 3, 3000),
            ("0001k", 1000, 1_000_000),
            ("64Mi", 64 << 20, (64 << 20) * 1000),
            ("0.5Gi", 1 << 29, (1 << 29) * 1000),
            ("1e3", 1000, 1_000_000),
            ("1E3", 1000, 1_000_000),
            ("1E-3", 1, 1),
            ("1E", 1_000_000_000_000_000_000, i64::MAX),
            ("1n", 1, 1),
            ("0.1n", 1, 1),
            ("1e-40", 1, 1),
            ("0e99999", 0, 0),
            ("1e99999", i64::MAX, i64::MAX),
            ("-1e99999", i64::MIN, i64::MIN),
            ("10Ei", i64::MAX, i64::MAX),
            ("3.3Ki", 3380, 3_379_200),
        ] {
            let quantity = Quantity::parse(text).unwrap();
            assert_eq!((quantity.value(), quantity.milli()), (value, milli), "{text}");
        }
    }

    #[test]
    fn the_canonical_form_has_no_fraction_and_the_largest_suffix() {
        for (text, canonical) in [
            ("0.5", "500m"),
            ("1000m", "1"),
            ("1500m", "1500m"),
            ("1000k", "1M"),
            ("1024Ki", "1Mi"),
            ("1025Ki", "1025Ki"),
            ("512", "512"),
            ("0.5Ki", "512"),
            ("1.1Ki", "1126400m"),
            ("1e3", "1e3"),
            ("1e4", "10e3"),
            ("100", "100"),
            ("2e0", "2"),
            ("-1024Ki", "-1Mi"),
            ("0.1n", "1n"),
            ("0Mi", "0"),
            ("9000P", "9E"),
        ] {
            assert_eq!(Quantity::parse(text).unwrap().to_string(), canonical, "{text}");
        }
    }

    #[test]
    fn what_is_no_quantity_is_refused_with_the_reason() {
        for (text, error) in [
            ("", QuantityError::Format),
            (" 1", QuantityError::Format),
            ("1 ", QuantityError::Format),
            ("1.1.1", QuantityError::Format),
            ("aoeu", QuantityError::Format),
            ("1+1.0M", QuantityError::Format),
            ("0.1am", QuantityError::Format),
            (".", QuantityError::Number),
            ("-", QuantityError::Number),
            ("Mi", QuantityError::Number),
            ("1K", QuantityError::Suffix),
            ("1i", QuantityError::Suffix),
            ("0.1mi", QuantityError::Suffix),
            ("-3.01e-", QuantityError::Suffix),
            ("1e99999999999999999999", QuantityError::Suffix),
            ("1Mi3", QuantityError::Suffix),
        ] {
            assert_eq!(Quantity::parse(text), Err(error), "{text:?}");
        }
    }

    #[test]
    fn a_sum_is_written_like_its_first_summand() {
        let parse = |text| Quantity::parse(text).unwrap();
        assert_eq!((parse("1Gi") + parse("1G")).to_string(), "2073741824");
        assert_eq!((parse("0") + parse("1Gi")).to_string(), "1Gi");
        assert_eq!([parse("250m"), parse("750m")].into_iter().sum::<Quantity>().to_string(), "1");
    }

    proptest! {
        #[test]
        fn writing_and_reading_gives_the_same_amount(nanos in -(1_i128 << 90)..(1_i128 << 90), binary: bool) {
            let form = if binary { Form::Binary } else { Form::Decimal };
            let quantity = Quantity { nanos, form };
            let again = Quantity::parse(&quantity.to_string()).unwrap();
            if binary && quantity.value() == i64::MAX {
                prop_assert!(again <= quantity);
            } else {
                prop_assert_eq!(again, quantity);
            }
        }

        #[test]
        fn canonical_text_is_stable(text in "[+-]?[0-9]{1,20}(\\.[0-9]{0,12})?(n|u|m|k|M|G|Ki|Mi|Gi|Ei|e-?[0-9]{1,2})?") {
            let once = Quantity::parse(&text).unwrap().to_string();
            prop_assert_eq!(Quantity::parse(&once).unwrap().to_string(), once);
        }

        #[test]
        fn order_is_that_of_the_amounts(a in 0_i64..1 << 40, b in 0_i64..1 << 40) {
            prop_assert_eq!(Quantity::from_units(a).cmp(&Quantity::from_units(b)), a.cmp(&b));
            prop_assert_eq!(
                Quantity::parse(&format!("{a}m")).unwrap().cmp(&Quantity::from_milli(b)),
                a.cmp(&b)
            );
            prop_assert_eq!(
                (Quantity::from_units(a) + Quantity::from_units(b)).value(), a + b
            );
        }

        #[test]
        fn no_text_makes_it_panic(text in "\\PC{0,40}", number in "[0-9.eEiKMn+-]{0,60}") {
            let _ = Quantity::parse(&text);
            let _ = Quantity::parse(&number);
        }
    }
}
