//! Sets of processors.

use std::{collections::BTreeSet, fmt};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

/// Numbers of logical processors. In JSON, for people and in cgroup files a list: `0-3,8`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Cpus(BTreeSet<u32>);

/// The highest number in a list; beyond it a typing error would fill the memory.
const HIGHEST: u32 = 65_535;

impl Cpus {
    /// No processor.
    pub const fn new() -> Cpus {
        Cpus(BTreeSet::new())
    }

    /// Reads a list of the kernel's form (cpuset(7), "List format", without strides); an empty one has no processor.
    ///
    /// # Errors
    /// A sentence that says what it should be.
    pub fn parse(text: &str) -> Result<Cpus, String> {
        parse_list(text).map(Cpus)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether `cpu` is one of them.
    pub fn contains(&self, cpu: u32) -> bool {
        self.0.contains(&cpu)
    }

    /// Ascending.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = u32> + '_ {
        self.0.iter().copied()
    }

    /// Those in either.
    pub fn union(&self, other: &Cpus) -> Cpus {
        Cpus(self.0.union(&other.0).copied().collect())
    }

    /// Those in both.
    pub fn intersection(&self, other: &Cpus) -> Cpus {
        Cpus(self.0.intersection(&other.0).copied().collect())
    }

    /// Those that are not in `other`.
    pub fn difference(&self, other: &Cpus) -> Cpus {
        Cpus(self.0.difference(&other.0).copied().collect())
    }

    /// Whether all of them are in `other`.
    pub fn is_subset(&self, other: &Cpus) -> bool {
        self.0.is_subset(&other.0)
    }
}

impl FromIterator<u32> for Cpus {
    fn from_iter<I: IntoIterator<Item = u32>>(cpus: I) -> Cpus {
        Cpus(cpus.into_iter().collect())
    }
}

impl Extend<u32> for Cpus {
    fn extend<I: IntoIterator<Item = u32>>(&mut self, cpus: I) {
        self.0.extend(cpus);
    }
}

impl fmt::Display for Cpus {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&format_list(self.iter()))
    }
}

impl Serialize for Cpus {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Cpus {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Cpus, D::Error> {
        Cpus::parse(&String::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

/// Ascending numbers as a list: runs of them by their ends.
pub(super) fn format_list(numbers: impl Iterator<Item = u32>) -> String {
    let mut runs: Vec<(u32, u32)> = Vec::new();
    for number in numbers {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == number => *last = number,
            _ => runs.push((number, number)),
        }
    }
    let run = |(first, last): (u32, u32)| match first == last {
        true => first.to_string(),
        false => format!("{first}-{last}"),
    };
    runs.into_iter().map(run).collect::<Vec<_>>().join(",")
}

/// Reads such a list.
pub(super) fn parse_list(text: &str) -> Result<BTreeSet<u32>, String> {
    let broken = || format!("expected a list of numbers like 0-3,8, found {text:?}");
    let mut found = BTreeSet::new();
    if text.trim().is_empty() {
        return Ok(found);
    }
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (first.trim().parse::<u32>(), last.trim().parse::<u32>());
        let (Ok(first), Ok(last)) = (first, last) else { return Err(broken()) };
        if first > last {
            return Err(broken());
        }
        if last > HIGHEST {
            return Err(format!("{last} is past {HIGHEST}, the highest number there can be"));
        }
        found.extend(first..=last);
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read_and_written_as_the_kernel_does() {
        for (text, count, written) in [("", 0, ""), ("3", 1, "3"), ("0-2,5", 4, "0-2,5"), ("5, 1,0,2\n", 4, "0-2,5")] {
            let cpus = Cpus::parse(text).unwrap();
            assert_eq!((cpus.len(), cpus.to_string().as_str()), (count, written), "{text:?}");
        }
        for text in ["2-0", "x", "1,,2", "-1", "0-70000"] {
            assert!(Cpus::parse(text).is_err(), "{text:?}");
        }
    }
}
