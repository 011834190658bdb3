//! Durations as people write them in machine.yaml and the settings: the Go form (`1h30m`, `500ms`, `1.5s`) or one
//! number with a single trailing day, week, month or year (`2d`, `1w`, `3M`, `1y`).
//!
//! Sources: Go's `time.ParseDuration` and the reference's extension of it.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Deserializer};

/// Longest accepted duration, a hundred years: beyond it clocks overflow, and nobody means it.
pub const MAXIMUM: Duration = Duration::from_secs(100 * 365 * 86_400);

/// A text that is not a duration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a duration: {reason}; write for example 500ms, 30s, 1h30m or 2d")]
pub struct DurationError {
    text: String,
    reason: &'static str,
}

/// Reads a duration. A sign is refused: no setting here means anything with a negative one.
///
/// # Errors
/// Quotes the text and names the first thing that is wrong with it.
pub fn parse(text: &str) -> Result<Duration, DurationError> {
    let refuse = |reason| DurationError { text: text.chars().take(80).collect(), reason };
    if text.is_empty() {
        return Err(refuse("it is empty"));
    }
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let mut total = 0f64;
    let mut rest = text;
    let mut parts = 0usize;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (number, tail) = rest.split_at(digits);
        let unit_length = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
        let (unit, next) = tail.split_at(unit_length);
        let number: f64 = number.parse().map_err(|_| refuse("a number is missing or malformed"))?;
        let (seconds, calendar) = unit_seconds(unit)
            .ok_or_else(|| refuse(if unit.is_empty() { "the unit is missing" } else { "the unit is unknown" }))?;
        if calendar && (parts > 0 || !next.is_empty()) {
            return Err(refuse("d, w, M and y stand alone"));
        }
        total += number * seconds;
        parts += 1;
        rest = next;
    }
    match Duration::try_from_secs_f64(total) {
        Ok(duration) if duration <= MAXIMUM => Ok(duration),
        _ => Err(refuse("it is longer than a hundred years")),
    }
}

/// Seconds of a unit, and whether it is one of the calendar units that stand alone.
fn unit_seconds(unit: &str) -> Option<(f64, bool)> {
    Some(match unit {
        "ns" => (1e-9, false),
        "us" | "µs" | "μs" => (1e-6, false),
        "ms" => (1e-3, false),
        "s" => (1.0, false),
        "m" => (60.0, false),
        "h" => (3_600.0, false),
        "d" | "D" => (86_400.0, true),
        "w" | "W" => (7.0 * 86_400.0, true),
        "M" => (30.0 * 86_400.0, true),
        "y" | "Y" => (365.0 * 86_400.0, true),
        _ => return None,
    })
}

/// Writes a duration in the Go form, the shortest that [`parse`] reads back: `1h30m`, `1.5s`, `250ms`, `0s`.
pub fn format(duration: Duration) -> String {
    Human(duration).to_string()
}

/// The JSON Schema of a duration, for `#[schemars(schema_with = …)]` beside [`deserialize`].
pub fn schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({
        "type": "string",
        "pattern": r"^(0|([0-9]*\.?[0-9]+(ns|us|µs|ms|s|m|h))+|[0-9]*\.?[0-9]+[dDwWMyY])$",
        "description": "A duration such as 500ms, 30s, 1h30m or 2d."
    })
}

struct Human(Duration);

impl fmt::Display for Human {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let total = self.0.as_secs();
        let nanos = self.0.subsec_nanos();
        if total == 0 && nanos > 0 {
            let (unit, scale) = match nanos {
                1_000_000.. => ("ms", 1e6),
                1_000.. => ("µs", 1e3),
                _ => ("ns", 1.0),
            };
            return write!(formatter, "{}{unit}", f64::from(nanos) / scale);
        }
        let (hours, minutes, seconds) = (total / 3_600, total / 60 % 60, total % 60);
        if hours > 0 {
            write!(formatter, "{hours}h")?;
        }
        if minutes > 0 {
            write!(formatter, "{minutes}m")?;
        }
        if seconds > 0 || nanos > 0 || total == 0 {
            if nanos > 0 {
                let fraction = format!("{nanos:09}");
                write!(formatter, "{seconds}.{}s", fraction.trim_end_matches('0'))?;
            } else {
                write!(formatter, "{seconds}s")?;
            }
        }
        Ok(())
    }
}

/// For `#[serde(deserialize_with = "duration::deserialize")]`.
///
/// # Errors
/// When the value is not a text or not a duration.
pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(deserializer)?;
    parse(&text).map_err(serde::de::Error::custom)
}

/// For `#[serde(default, deserialize_with = "duration::deserialize_option")]`.
///
/// # Errors
/// When the value is not a text or not a duration.
pub fn deserialize_option<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    deserialize(deserializer).map(Some)
}

/// A number from 0 to 1, for spreading work over time; not for secrets.
pub fn random_fraction() -> f64 {
    let mut bytes = [0u8; 4];
    match getrandom::fill(&mut bytes) {
        Ok(()) => f64::from(u32::from_le_bytes(bytes)) / f64::from(u32::MAX),
        Err(_) => 0.5,
    }
}

/// Where random waits come from; a scenario test must find the same each time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Chance {
    /// From the system.
    #[default]
    Random,
    /// Every wait is as long as it may be.
    Longest,
}

impl Chance {
    /// A number from 0 to 1.
    pub fn fraction(self) -> f64 {
        match self {
            Self::Random => random_fraction(),
            Self::Longest => 1.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_go_durations_and_calendar_units() {
        let cases = [
            ("500ms", 500),
            ("1.5s", 1_500),
            ("1h30m", 5_400_000),
            ("0", 0),
            ("2d", 172_800_000),
            ("1w", 604_800_000),
            ("1M", 2_592_000_000),
            ("1Y", 31_536_000_000),
        ];
        for (text, millis) in cases {
            assert_eq!(parse(text), Ok(Duration::from_millis(millis)), "{text}");
        }
    }

    #[test]
    fn refuses_what_is_not_a_duration() {
        for text in ["", "5", "-5s", "s", "1x", "1d2h", "2h1d", "1..5s", "1e9s", "999999y", "NaNs", " 1s", "1s "] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains("is not a duration"), "{text}: {error}");
        }
    }

    #[test]
    fn what_is_written_reads_back() {
        for millis in [0, 1, 250, 1_000, 1_500, 60_000, 61_000, 3_600_000, 5_400_000, 90_061_000] {
            let duration = Duration::from_millis(millis);
            assert_eq!(parse(&format(duration)), Ok(duration), "{}", format(duration));
        }
    }
}
