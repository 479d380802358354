//! What a benchmark found: a table for people, a file for programs.

use std::{fs, path::Path};

use anyhow::{Context, Result};
use serde_json::{Value, json};

/// Values of one contender.
#[derive(Debug, Clone)]
pub struct Series {
    /// `berth`, `floor`, `runc`, `podman`.
    pub who: String,
    /// One value per repetition.
    pub values: Vec<f64>,
}

impl Series {
    /// A series.
    pub fn new(who: &str, values: impl IntoIterator<Item = f64>) -> Series {
        Series { who: who.to_owned(), values: values.into_iter().collect() }
    }

    /// The value below which `share` (0 to 1) of the values lie.
    pub fn quantile(&self, share: f64) -> f64 {
        let mut sorted = self.values.clone();
        sorted.sort_by(f64::total_cmp);
        match sorted.len() {
            0 => f64::NAN,
            count => sorted[((count - 1) as f64 * share).round() as usize],
        }
    }
}

/// A goal: berth's median against a fixed number or another contender's median.
#[derive(Debug, Clone)]
pub enum Goal {
    /// At most this much.
    AtMost(f64),
    /// At most this many times the median of another contender.
    TimesOf(f64, &'static str),
}

/// One benchmark.
#[derive(Debug, Clone)]
pub struct Benchmark {
    /// File name and title.
    pub name: &'static str,
    /// Unit of the values; less is better in all of them.
    pub unit: &'static str,
    /// berth first.
    pub series: Vec<Series>,
    /// What is to be reached.
    pub goals: Vec<Goal>,
}

impl Benchmark {
    fn median(&self, who: &str) -> Option<f64> {
        self.series.iter().find(|series| series.who == who).map(|series| series.quantile(0.5))
    }

    /// Each goal in words, and whether it is met; a goal whose peer was not measured is not met.
    pub fn verdicts(&self) -> Vec<(String, bool)> {
        let ours = self.median("berth").unwrap_or(f64::NAN);
        self.goals
            .iter()
            .map(|goal| match goal {
                Goal::AtMost(most) => (format!("{ours:.2} {} of at most {most}", self.unit), ours <= *most),
                Goal::TimesOf(most, who) => match self.median(who) {
                    Some(theirs) => {
                        let ratio = ours / theirs;
                        (format!("{ratio:.3}x {who}, at most {most:.3}x"), ratio <= *most)
                    }
                    None => (format!("{who} was not measured"), false),
                },
            })
            .collect()
    }

    /// Prints the table.
    pub fn print(&self) {
        println!("\n{} ({}, less is better)", self.name, self.unit);
        println!("  {:<10} {:>10} {:>10} {:>6}", "", "p50", "p99", "n");
        for series in &self.series {
            let (p50, p99) = (series.quantile(0.5), series.quantile(0.99));
            println!("  {:<10} {p50:>10.2} {p99:>10.2} {:>6}", series.who, series.values.len());
        }
        for (words, met) in self.verdicts() {
            println!("  {} {words}", if met { "met    " } else { "MISSED " });
        }
    }

    /// Writes `<directory>/<name>.json`.
    pub fn write(&self, directory: &Path) -> Result<()> {
        let contenders: Vec<Value> = self
            .series
            .iter()
            .map(|series| {
                json!({
                    "who": series.who,
                    "p50": series.quantile(0.5),
                    "p99": series.quantile(0.99),
                    "values": series.values,
                    "ratio": self.median("berth").map(|ours| ours / series.quantile(0.5)),
                })
            })
            .collect();
        let goals: Vec<Value> =
            self.verdicts().into_iter().map(|(goal, met)| json!({ "goal": goal, "met": met })).collect();
        let document = json!({
            "name": self.name,
            "unit": self.unit,
            "lower_is_better": true,
            "contenders": contenders,
            "goals": goals,
        });
        fs::create_dir_all(directory).with_context(|| format!("create {}", directory.display()))?;
        let path = directory.join(format!("{}.json", self.name));
        fs::write(&path, format!("{document:#}\n")).with_context(|| format!("write {}", path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn goals_compare_medians_and_a_missing_peer_is_a_miss() {
        let benchmark = Benchmark {
            name: "x",
            unit: "ms",
            series: vec![Series::new("berth", [3.0, 1.0, 2.0]), Series::new("runc", [10.0])],
            goals: vec![
                Goal::AtMost(2.0),
                Goal::AtMost(1.9),
                Goal::TimesOf(0.2, "runc"),
                Goal::TimesOf(0.1, "runc"),
                Goal::TimesOf(9.0, "podman"),
            ],
        };
        let met: Vec<bool> = benchmark.verdicts().into_iter().map(|(_, met)| met).collect();
        assert_eq!(met, [true, false, true, false, false]);
    }
}
