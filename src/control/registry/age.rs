//! How much time has passed, as kubectl shows it (`apimachinery/pkg/util/duration` upstream).

use jiff::Timestamp;
use serde_json::Value;

/// `5d3h`; `<unknown>` where there is no time.
pub fn age(since: &Value, now: Timestamp) -> Value {
    match since.as_str().and_then(|text| text.parse::<Timestamp>().ok()) {
        Some(since) => human(now.as_second() - since.as_second()).into(),
        None => "<unknown>".into(),
    }
}

/// A duration with at most two units, the less the longer it is.
pub fn human(seconds: i64) -> String {
    // A clock that is a little behind is no reason to look odd.
    if seconds < -1 {
        return "<invalid>".to_owned();
    }
    let seconds = seconds.max(0);
    let (minutes, hours) = (seconds / 60, seconds / 3600);
    let (days, years) = (hours / 24, hours / 24 / 365);
    let two = |big: i64, unit: &str, small: i64, small_unit: &str| match small {
        0 => format!("{big}{unit}"),
        small => format!("{big}{unit}{small}{small_unit}"),
    };
    match seconds {
        ..120 => format!("{seconds}s"),
        _ if minutes < 10 => two(minutes, "m", seconds % 60, "s"),
        _ if minutes < 180 => format!("{minutes}m"),
        _ if hours < 8 => two(hours, "h", minutes % 60, "m"),
        _ if hours < 48 => format!("{hours}h"),
        _ if days < 8 => two(days, "d", hours % 24, "h"),
        _ if days < 730 => format!("{days}d"),
        _ if years < 8 => two(years, "y", days % 365, "d"),
        _ => format!("{years}y"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longer_ago_the_coarser() {
        for (seconds, text) in [
            (-5, "<invalid>"),
            (-1, "0s"),
            (119, "119s"),
            (120, "2m"),
            (150, "2m30s"),
            (601, "10m"),
            (3 * 3600 + 60, "3h1m"),
            (8 * 3600 + 60, "8h"),
            (49 * 3600, "2d1h"),
            (9 * 86400, "9d"),
            (800 * 86400, "2y70d"),
            (9 * 365 * 86400, "9y"),
        ] {
            assert_eq!(human(seconds), text, "{seconds}");
        }
        let now = "2026-01-01T00:01:00Z".parse().unwrap();
        assert_eq!(age(&"2026-01-01T00:00:00Z".into(), now), "60s");
        assert_eq!(age(&Value::Null, now), "<unknown>");
    }
}
