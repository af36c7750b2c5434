//! One measured figure: a number with its unit, and where there is one its interval.

use std::time::Duration;

use flannel_lab::report::time;
use serde::{Deserialize, Serialize};

use crate::statistics::{median, median_interval, percentile};

/// What a number counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Unit {
    /// Seconds.
    Seconds,
    /// Bytes.
    Bytes,
    /// Things.
    Count,
    /// One figure over another.
    Ratio,
    /// Times a second.
    PerSecond,
    /// Bits a second.
    BitsPerSecond,
}

/// A number as it was measured.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    /// The number, in the unit of its row.
    pub value: f64,
    /// Of many: the 95th percentile beside the median that the number then is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub p95: Option<f64>,
    /// Between which the value is to be expected in another run (95 %).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interval: Option<(f64, f64)>,
}

impl From<f64> for Figure {
    fn from(value: f64) -> Self {
        Self { value, p95: None, interval: None }
    }
}

impl From<Duration> for Figure {
    fn from(time: Duration) -> Self {
        time.as_secs_f64().into()
    }
}

impl Figure {
    /// The median of many with its interval.
    pub fn median_of(values: &[f64]) -> Self {
        Self { value: median(values), p95: None, interval: median_interval(values) }
    }

    /// The median of many with their 95th percentile.
    pub fn spread_of(values: &[f64]) -> Self {
        Self { value: median(values), p95: Some(percentile(values, 95)), interval: None }
    }

    /// What a bound is for: the 95th percentile where there is one.
    pub fn bounded(&self) -> f64 {
        self.p95.unwrap_or(self.value)
    }

    /// In words, for a table.
    pub fn shown(&self, unit: Unit) -> String {
        let value = number(self.value, unit);
        match (self.interval, self.p95) {
            (Some((low, high)), _) => format!("{value} ({}–{})", number(low, unit), number(high, unit)),
            (None, Some(p95)) => format!("{value} / {}", number(p95, unit)),
            (None, None) => value,
        }
    }
}

/// A number with its unit, as one reads it.
pub fn number(value: f64, unit: Unit) -> String {
    match unit {
        _ if !value.is_finite() => "–".to_owned(),
        Unit::Seconds if value == 0.0 => "0 s".to_owned(),
        Unit::Seconds => Duration::try_from_secs_f64(value).map_or_else(|_| format!("{value} s"), time),
        Unit::Bytes => format!("{:.1} MiB", value / f64::from(1 << 20)),
        Unit::Count => format!("{value:.0}"),
        Unit::Ratio => format!("{value:.2}"),
        Unit::PerSecond => format!("{value:.0}/s"),
        Unit::BitsPerSecond => format!("{:.2} Gbit/s", value / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_read_with_their_units() {
        let shown = [
            (0.0215, Unit::Seconds),
            (7_654_321.0, Unit::Bytes),
            (240.0, Unit::Count),
            (1.497, Unit::Ratio),
            (81.6, Unit::PerSecond),
            (13.3e9, Unit::BitsPerSecond),
            (f64::NAN, Unit::Ratio),
        ];
        let shown = shown.map(|(value, unit)| Figure::from(value).shown(unit));
        assert_eq!(shown, ["21.5 ms", "7.3 MiB", "240", "1.50", "82/s", "13.30 Gbit/s", "–"]);
        let times: Vec<f64> = (1..=50).map(|time| f64::from(time) / 1e3).collect();
        assert_eq!(Figure::spread_of(&times).shown(Unit::Seconds), "25.5 ms / 48.0 ms");
        let ratio = Figure { interval: Some((0.961, 1.0)), ..Figure::from(0.98) };
        assert_eq!(ratio.shown(Unit::Ratio), "0.98 (0.96–1.00)");
    }
}
