//! Results on standard output.

use std::{
    io::{self, Write},
    time::Duration,
};

use comfy_table::{ContentArrangement, Table, presets};
use jiff::Timestamp;
use serde::Serialize;

use super::{args::Output, exit::Failed};

/// Writes `text` to standard output. A reader that has gone away (`berth pods | head`) is no failure.
///
/// # Errors
/// Anything else that is wrong with standard output, a full disk for example.
pub fn print(text: &str) -> Result<(), Failed> {
    print_bytes(text.as_bytes())
}

/// As [`print()`], for bytes.
///
/// # Errors
/// As [`print()`].
pub fn print_bytes(bytes: &[u8]) -> Result<(), Failed> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => std::process::exit(0),
        result => result.map_err(|error| Failed::of(&error)),
    }
}

/// Prints `value` as JSON or YAML, or else what `table` makes of it.
///
/// # Errors
/// As [`print()`].
pub fn show(output: Output, value: &impl Serialize, table: impl FnOnce(bool) -> String) -> Result<(), Failed> {
    match output {
        Output::Table => print(&table(false)),
        Output::Wide => print(&table(true)),
        Output::Json => {
            let mut text = serde_json::to_string_pretty(value).map_err(|error| Failed::of(&error))?;
            text.push('\n');
            print(&text)
        }
        Output::Yaml => {
            // By way of JSON, whose types are YAML's as well.
            let value = serde_json::to_value(value).map_err(|error| Failed::of(&error))?;
            print(&serde_saphyr::to_string(&value).map_err(|error| Failed::of(&error))?)
        }
    }
}

/// Columns like kubectl's: no lines, three spaces in between, never wrapped or cut.
pub struct Columns {
    table: Table,
}

impl Columns {
    /// With these headings.
    pub fn new(headings: &[&str]) -> Columns {
        let mut table = Table::new();
        table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled).set_header(headings);
        for column in table.column_iter_mut() {
            column.set_padding((0, 3));
        }
        Columns { table }
    }

    /// Adds a row. Anything that could move the cursor is shown rather than obeyed.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.table.add_row(cells.into_iter().map(|cell| harmless(&cell)));
    }

    /// The table with a line end.
    pub fn finish(self) -> String {
        let mut text = String::new();
        for line in self.table.lines() {
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

/// Control characters as escapes: names and messages come from images and manifests.
pub fn harmless(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        match character.is_control() {
            true => out.extend(character.escape_default()),
            false => out.push(character),
        }
    }
    out
}

/// An age as kubectl writes it: `45s`, `3m20s`, `5h12m`, `2d3h`, `17d`, `2y30d`.
pub fn age(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    let two = |large: u64, large_unit: &str, small: u64, small_unit: &str| match small {
        0 => format!("{large}{large_unit}"),
        small => format!("{large}{large_unit}{small}{small_unit}"),
    };
    match (seconds, minutes, hours) {
        (..120, ..) => format!("{seconds}s"),
        (_, ..10, _) => two(minutes, "m", seconds % 60, "s"),
        (_, ..180, _) => format!("{minutes}m"),
        (.., ..8) => two(hours, "h", minutes % 60, "m"),
        (.., ..48) => format!("{hours}h"),
        _ if days < 8 => two(days, "d", hours % 24, "h"),
        _ if days < 730 => format!("{days}d"),
        _ if days < 2920 => two(days / 365, "y", days % 365, "d"),
        _ => format!("{}y", days / 365),
    }
}

/// The age of something at `now`; `<unknown>` without a time, as kubectl says.
pub fn age_of(time: Option<Timestamp>, now: Timestamp) -> String {
    match time {
        // What lies in the future (a clock that was set back) is as old as nothing.
        Some(time) => age(Duration::try_from(now.duration_since(time)).unwrap_or_default()),
        None => "<unknown>".to_owned(),
    }
}

/// Bytes for people: `64.0MiB`.
pub fn bytes(count: u64) -> String {
    let mut value = count as f64;
    let mut unit = "B";
    for larger in ["KiB", "MiB", "GiB", "TiB"] {
        if value < 1024.0 {
            break;
        }
        value /= 1024.0;
        unit = larger;
    }
    match unit {
        "B" => format!("{count}B"),
        _ => format!("{value:.1}{unit}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell_and_nothing_more() {
        let mut columns = Columns::new(&["NAME", "READY", "AGE"]);
        columns.row(["web".to_owned(), "1/1".to_owned(), "5s".to_owned()]);
        columns.row(["a-long-name".to_owned(), "0/1".to_owned(), String::new()]);
        columns.row(["evil\u{1b}[2J\n".to_owned(), "0/1".to_owned(), "1d".to_owned()]);
        let expected = "\
NAME              READY   AGE
web               1/1     5s
a-long-name       0/1
evil\\u{1b}[2J\\n   0/1     1d
";
        assert_eq!(columns.finish(), expected);
    }

    #[test]
    fn ages_are_kubectls() {
        for (seconds, text) in [
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (200, "3m20s"),
            (599, "9m59s"),
            (600, "10m"),
            (10799, "179m"),
            (10800, "3h"),
            (18720, "5h12m"),
            (28800, "8h"),
            (172799, "47h"),
            (172800, "2d"),
            (183600, "2d3h"),
            (691200, "8d"),
            (63072000, "2y"),
            (65664000, "2y30d"),
            (252288000, "8y"),
        ] {
            assert_eq!(age(Duration::from_secs(seconds)), text);
        }
    }

    #[test]
    fn sizes_are_readable() {
        assert_eq!([0, 1023, 1024, 1 << 20, 5 << 30].map(bytes), ["0B", "1023B", "1.0KiB", "1.0MiB", "5.0GiB"]);
    }
}
