//! How long everything is looked at.

use std::time::Duration;

use crate::loads::latency::Schedule;

/// The times of a run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Times {
    /// Before a measurement counts.
    pub(crate) warm_up: Duration,
    pub(crate) bulk: Duration,
    pub(crate) latency: Duration,
    pub(crate) connections: Duration,
    /// The same on the slow link, where it takes long until the rate is found.
    pub(crate) link_warm_up: Duration,
    pub(crate) link: Duration,
    pub(crate) rounds: usize,
    /// No round begins that would end after this.
    pub(crate) rounds_time: Duration,
    pub(crate) idle_streams: &'static [usize],
    pub(crate) idle_agents: usize,
    pub(crate) loss_percents: &'static [u32],
}

impl Times {
    pub(crate) fn new(quick: bool) -> Self {
        if quick {
            Self {
                warm_up: Duration::from_millis(200),
                bulk: Duration::from_millis(700),
                latency: Duration::from_secs(1),
                connections: Duration::from_millis(700),
                link_warm_up: Duration::from_millis(1500),
                link: Duration::from_secs(4),
                rounds: 1,
                rounds_time: Duration::from_secs(60),
                idle_streams: &[1_000],
                idle_agents: 100,
                loss_percents: &[1],
            }
        } else {
            Self {
                warm_up: Duration::from_millis(300),
                bulk: Duration::from_secs(1),
                latency: Duration::from_millis(1500),
                connections: Duration::from_secs(1),
                link_warm_up: Duration::from_secs(2),
                link: Duration::from_secs(5),
                rounds: 5,
                rounds_time: Duration::from_secs(320),
                idle_streams: &[1_000, 10_000],
                idle_agents: 1_000,
                loss_percents: &[0, 1, 3],
            }
        }
    }

    /// 1,000 requests a second.
    pub(crate) fn requests(&self) -> Schedule {
        Schedule {
            connections: 8,
            interval: Duration::from_millis(8),
            time: self.latency,
        }
    }

    /// 160 requests a second, on so many connections that one has its answer before its next one
    /// is due, unless packets are lost.
    pub(crate) fn link_requests(&self) -> Schedule {
        Schedule {
            connections: 40,
            interval: Duration::from_millis(250),
            time: self.link,
        }
    }
}
