//! Measured values, and the table that shows them.

use std::io::Write as _;

/// Measured values of one thing, in one unit.
#[derive(Clone, Debug, Default)]
pub struct Samples(Vec<f64>);

impl Samples {
    /// No values.
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    /// Adds a value; the values are kept sorted.
    pub fn add(&mut self, value: f64) {
        let at = self.0.partition_point(|have| have.total_cmp(&value).is_lt());
        self.0.insert(at, value);
    }

    /// The number of values.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// The value below which `percent` of all values lie; `NaN` if there are none.
    pub fn percentile(&self, percent: usize) -> f64 {
        let at = (self.0.len() * percent).div_ceil(100).max(1) - 1;
        self.0.get(at).copied().unwrap_or(f64::NAN)
    }

    /// The median; `NaN` without values.
    pub fn median(&self) -> f64 {
        self.percentile(50)
    }
}

/// A table with one row for each thing that was measured.
#[derive(Debug)]
pub struct Table(Vec<[String; 7]>);

impl Table {
    /// An empty table.
    pub fn new() -> Self {
        let head = ["what", "unit", "median", "p99", "min", "max", "n"];
        Self(vec![head.map(str::to_owned)])
    }

    /// Adds a row.
    pub fn add_row(&mut self, what: impl Into<String>, unit: &str, samples: &Samples) {
        let number = |value: f64| {
            let digits = match value.abs() {
                v if v >= 1_000.0 => 0,
                v if v >= 10.0 => 1,
                _ => 3,
            };
            format!("{value:.digits$}")
        };
        self.0.push([
            what.into(),
            unit.to_owned(),
            number(samples.median()),
            number(samples.percentile(99)),
            number(samples.percentile(0)),
            number(samples.percentile(100)),
            samples.count().to_string(),
        ]);
    }

    /// Writes it to standard output.
    ///
    /// # Errors
    /// Standard output is closed.
    pub fn print(&self) -> std::io::Result<()> {
        let width = |column: usize| self.0.iter().map(|row| row[column].chars().count()).max();
        let widths: Vec<usize> = (0..7).map(|column| width(column).unwrap_or(0)).collect();
        let mut out = std::io::stdout().lock();
        for row in &self.0 {
            let mut line = format!("{:<1$}", row[0], widths[0]);
            for (cell, width) in row.iter().zip(&widths).skip(1) {
                line.push_str(&format!("  {cell:>width$}"));
            }
            writeln!(out, "{line}")?;
        }
        out.flush()
    }
}

impl Default for Table {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_were_measured() {
        let mut samples = Samples::default();
        for value in [5.0, 1.0, 4.0, 2.0, 3.0] {
            samples.add(value);
        }
        let of = |percent| samples.percentile(percent).to_bits();
        assert_eq!(
            [of(0), of(50), of(99), of(100)],
            [1.0, 3.0, 5.0, 5.0].map(f64::to_bits)
        );
        assert!(Samples::default().median().is_nan());
    }
}
