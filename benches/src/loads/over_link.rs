//! Bulk downloads beside small requests, over a link with delay and loss.

use std::net::SocketAddr;

use super::bulk::{Bulk, Direction};
use super::latency;
use crate::compare::times::Times;
use crate::link::LinkConfig;
use crate::link::tun::{self, TunLink};
use crate::service::Service;
use crate::subjects::{Place, Running, Subject};

/// The link between the two processes of a subject.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Over<'a> {
    pub(crate) config: LinkConfig,
    /// That of the kernel's TCP.
    pub(crate) congestion: &'a str,
    /// Downloads at once.
    pub(crate) streams: usize,
    /// Where the service is, if the link is one of UDP sockets; else it is between two namespaces.
    pub(crate) udp: Option<SocketAddr>,
}

impl Over<'_> {
    /// What the subject makes of it.
    pub(crate) async fn measure(
        &self,
        subject: &dyn Subject,
        service: &Service,
        times: &Times,
    ) -> anyhow::Result<[(&'static str, f64); 3]> {
        // Dropped after what runs in it.
        let mut link = None;
        let place = match self.udp {
            Some(service) => Place::loopback(service).over(self.config),
            None => between(
                link.insert(TunLink::new(self.config, self.congestion)?),
                service,
            )?,
        };
        let running = Running::start(subject, &place).await?;
        let counters = service.counters();
        let mut bulk =
            Bulk::start(running.entry(), Direction::Down, self.streams, counters).await?;
        tokio::time::sleep(times.link_warm_up).await;
        let requests = latency::run(running.entry(), times.link_requests());
        let (moved, latencies) = bulk.during(&running.pids(), requests).await?;
        bulk.end().await;
        let latencies = latencies?;
        Ok([
            ("mbit_per_s", moved.gbit_per_s() * 1e3),
            ("p50_ms", latencies.micros(0.5) / 1e3),
            ("p99_ms", latencies.micros(0.99) / 1e3),
        ])
    }
}

/// The two ends of a link, with the service behind the far one.
pub(crate) fn between(link: &TunLink, service: &Service) -> anyhow::Result<Place> {
    // The address is there as long as the namespaces are, and a port of each is free.
    let target = service.listen((tun::SERVICE, 0).into())?;
    Ok(Place::apart(
        [tun::ENTRY, tun::NEAR, tun::FAR],
        target,
        link.namespaces(),
    ))
}
