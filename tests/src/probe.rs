//! Waiting for a condition, and reading metrics.

use std::collections::BTreeMap;
use std::future::Future;
use std::time::Duration;

use anyhow::bail;
use tokio::time::Instant;

use crate::Result;

/// How long a condition may take to come true. It bounds a hang and is no claim about speed.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until `check` gives a value; the last error is the failure.
///
/// # Errors
/// The last error, when [`PATIENCE`] is over.
pub async fn eventually<T, F>(what: &str, mut check: impl FnMut() -> F) -> Result<T>
where
    F: Future<Output = Result<T>>,
{
    let started = Instant::now();
    loop {
        match check().await {
            Ok(value) => return Ok(value),
            Err(error) if started.elapsed() > PATIENCE => {
                return Err(error.context(format!("waited {PATIENCE:?} for: {what}")));
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

/// Waits until `check` is true.
///
/// # Errors
/// When [`PATIENCE`] is over.
pub async fn until(what: &str, mut check: impl FnMut() -> bool) -> Result {
    eventually(what, || {
        let holds = check();
        async move {
            if holds {
                Ok(())
            } else {
                bail!("it does not hold")
            }
        }
    })
    .await
}

/// Looks at which a value must be the same for [`plateau`].
const PLATEAU_LOOKS: u32 = 25;

/// Waits until `value` has stopped changing, and returns it.
///
/// # Errors
/// When [`PATIENCE`] is over.
pub async fn plateau<T: PartialEq + Copy>(what: &str, mut value: impl FnMut() -> T) -> Result<T> {
    let mut last = value();
    let mut same = 0;
    until(what, || {
        let now = value();
        same = if now == last { same + 1 } else { 0 };
        last = now;
        same >= PLATEAU_LOOKS
    })
    .await?;
    Ok(last)
}

/// Prometheus' text format, by series: `name{label="value"}`.
#[derive(Debug, Clone, Default)]
pub struct Metrics(BTreeMap<String, f64>);

impl Metrics {
    /// Reads what `/metrics` serves.
    ///
    /// # Errors
    /// On a line that is neither a comment nor a sample.
    pub fn parse(text: &str) -> Result<Self> {
        let mut series = BTreeMap::new();
        for line in text
            .lines()
            .filter(|line| !line.is_empty() && !line.starts_with('#'))
        {
            let Some((name, value)) = line.rsplit_once(' ') else {
                bail!("no sample: {line}")
            };
            series.insert(name.to_owned(), value.parse()?);
        }
        Ok(Self(series))
    }

    /// The metrics of a node in this process.
    ///
    /// # Errors
    /// As [`Metrics::parse`].
    pub fn gather(registry: &node::metrics::Registry) -> Result<Self> {
        Self::parse(&node::metrics::encode(registry)?)
    }

    /// The value of a series, written as in the format.
    ///
    /// # Errors
    /// When there is none; the error names those that begin alike.
    pub fn get(&self, series: &str) -> Result<f64> {
        match self.0.get(series) {
            Some(value) => Ok(*value),
            None => {
                let family = series.split('{').next().unwrap_or(series);
                let alike: Vec<_> = self
                    .0
                    .keys()
                    .filter(|name| name.starts_with(family))
                    .collect();
                bail!("no series {series}; there are {alike:?}")
            }
        }
    }

    /// The sum of all series of a family.
    #[must_use]
    pub fn sum(&self, family: &str) -> f64 {
        self.0
            .iter()
            .filter(|(name, _)| name.split('{').next() == Some(family))
            .map(|(_, value)| value)
            .sum()
    }
}
