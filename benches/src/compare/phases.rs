//! The parts of a run.

use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::Context as _;

use super::times::Times;
use super::{CompareArgs, Load};
use crate::link::LinkConfig;
use crate::loads::bulk::{Bulk, Direction};
use crate::loads::over_link::Over;
use crate::loads::{connections, idle, latency};
use crate::machine::Machine;
use crate::process::resident_bytes;
use crate::report::Report;
use crate::service::Service;
use crate::subjects::agents::Fleet;
use crate::subjects::node::Node;
use crate::subjects::relay::Relay;
use crate::subjects::{Place, Running, Subject};

const STREAMS: [usize; 3] = [1, 8, 64];

/// Downloads that nobody reads.
const STALLED: usize = 64;

/// Once so little was sent for so long, buffers are full.
const STALLED_FOR: Duration = Duration::from_millis(200);
const STALL_PATIENCE: Duration = Duration::from_secs(5);

/// Descriptors of this process beside those of the streams.
const DESCRIPTORS_ELSE: u64 = 1_000;

pub(crate) const LINK: LinkConfig = LinkConfig {
    delay: Duration::from_millis(25),
    bits_per_s: 200_000_000,
    queue_bytes: 1_250_000,
    loss: 0.0,
    late: 0.0,
};

/// What a run has.
pub(crate) struct Bench {
    pub(crate) report: Report,
    pub(crate) service: Service,
    pub(crate) times: Times,
}

impl Bench {
    fn loopback(&self) -> Place {
        Place::loopback(self.service.addr())
    }

    /// Every load, every subject in turn; and again.
    pub(crate) async fn rounds(
        &mut self,
        args: &CompareArgs,
        subjects: &[Box<dyn Subject>],
    ) -> anyhow::Result<()> {
        let loads = [Load::Bulk, Load::Latency, Load::Connections, Load::Stalled];
        if !loads.iter().any(|load| args.wants(*load)) {
            return Ok(());
        }
        let place = self.loopback();
        let mut running = Vec::new();
        for subject in subjects {
            running.push((subject.name(), Running::start(&**subject, &place).await?));
        }
        let started = Instant::now();
        let rounds = args.rounds.unwrap_or(self.times.rounds);
        for round in 0..rounds {
            let began = Instant::now();
            eprintln!("round {} of up to {rounds}", round + 1);
            self.round(args, round, &mut running).await?;
            self.report.rounds = round + 1;
            if started.elapsed() + began.elapsed() > self.times.rounds_time {
                break;
            }
        }
        Ok(())
    }

    async fn round(
        &mut self,
        args: &CompareArgs,
        round: usize,
        subjects: &mut [(&str, Running)],
    ) -> anyhow::Result<()> {
        if args.wants(Load::Bulk) {
            for (direction, name) in [(Direction::Down, "down"), (Direction::Up, "up")] {
                for streams in STREAMS {
                    let load = format!("bulk {name} {streams}");
                    for (subject, running) in &mut *subjects {
                        let measured = self.bulk(running, direction, streams).await;
                        let values = running.explain(measured, subject, &load)?;
                        self.report.add(round, subject, &load, &values);
                    }
                }
            }
        }
        if args.wants(Load::Latency) {
            for (subject, running) in &mut *subjects {
                let measured = latency::run(running.entry(), self.times.requests()).await;
                let values = running.explain(measured, subject, "latency idle")?;
                self.report
                    .add(round, subject, "latency idle", &micros(&values));
            }
            for (subject, running) in &mut *subjects {
                let measured = self.beside_bulk(running).await;
                let values = running.explain(measured, subject, "latency beside bulk")?;
                self.report
                    .add(round, subject, "latency beside bulk", &values);
            }
        }
        if args.wants(Load::Stalled) {
            for (subject, running) in &mut *subjects {
                let measured = self.beside_stalled(running).await;
                let values = running.explain(measured, subject, "latency 64 stalled")?;
                self.report
                    .add(round, subject, "latency 64 stalled", &values);
            }
        }
        if args.wants(Load::Connections) {
            for (subject, running) in &mut *subjects {
                let (warm_up, time) = (self.times.warm_up, self.times.connections);
                let made = connections::run(running.entry(), warm_up, time).await;
                let values = [("per_s", made.per_s), ("failed", made.failed as f64)];
                self.report.add(round, subject, "connections", &values);
            }
        }
        Ok(())
    }

    async fn bulk(
        &self,
        running: &Running,
        direction: Direction,
        streams: usize,
    ) -> anyhow::Result<[(&'static str, f64); 2]> {
        let counters = self.service.counters();
        let mut bulk = Bulk::start(running.entry(), direction, streams, counters).await?;
        tokio::time::sleep(self.times.warm_up).await;
        let window = tokio::time::sleep(self.times.bulk);
        let (moved, ()) = bulk.during(&running.pids(), window).await?;
        bulk.end().await;
        Ok([
            ("gbit_per_s", moved.gbit_per_s()),
            ("cpu_s_per_gib", moved.cpu_s_per_gib()),
        ])
    }

    async fn beside_bulk(&self, running: &Running) -> anyhow::Result<[(&'static str, f64); 4]> {
        let counters = self.service.counters();
        let mut bulk = Bulk::start(running.entry(), Direction::Down, 1, counters).await?;
        tokio::time::sleep(self.times.warm_up).await;
        let requests = latency::run(running.entry(), self.times.requests());
        let (moved, latencies) = bulk.during(&running.pids(), requests).await?;
        bulk.end().await;
        let [p50, p99, p999] = micros(&latencies?);
        Ok([p50, p99, p999, ("gbit_per_s", moved.gbit_per_s())])
    }

    async fn beside_stalled(&self, running: &Running) -> anyhow::Result<[(&'static str, f64); 3]> {
        let stalled = idle::unread(running.entry(), STALLED).await?;
        let sent = || self.service.counters().sent.load(Ordering::Relaxed);
        let started = Instant::now();
        let mut before = u64::MAX;
        while sent() != before && started.elapsed() < STALL_PATIENCE {
            before = sent();
            tokio::time::sleep(STALLED_FOR).await;
        }
        let latencies = latency::run(running.entry(), self.times.requests()).await?;
        drop(stalled);
        self.service.counters().drained().await;
        Ok(micros(&latencies))
    }

    /// What an idle stream costs, in tunnels that have done nothing else.
    pub(crate) async fn idle_streams(&mut self, args: &CompareArgs) -> anyhow::Result<()> {
        for wanted in self.times.idle_streams.iter().copied() {
            let load = format!("streams {wanted}");
            // Both ends of each are here, and a relay has two of each.
            let allowed = self.report.descriptors();
            let room = usize::try_from(allowed.saturating_sub(DESCRIPTORS_ELSE) / 2)?;
            let streams = wanted.min(room);
            if streams < wanted {
                self.report.note(format!(
                    "{streams} idle streams instead of {wanted}: {allowed} descriptors are allowed \
                     (`ulimit -n`)."
                ));
            }
            if streams < wanted / 2 {
                continue;
            }
            let mut subjects: Vec<Box<dyn Subject>> = vec![
                Box::new(Relay::Plain),
                Box::new(Relay::Tls),
                Box::new(Node::new(&args.set).streams_max(streams * 2)),
            ];
            subjects.extend(args.peer.iter().map(|peer| peer.subject(&args.set)));
            for subject in subjects {
                let mut running = Running::start(&*subject, &self.loopback()).await?;
                let measured = idle::memory(running.entry(), running.pids(), streams).await;
                match running.explain(measured, subject.name(), &load) {
                    Ok([near, far]) => {
                        let values = [("near_kib", near / 1024.0), ("far_kib", far / 1024.0)];
                        self.report.add(0, subject.name(), &load, &values);
                    }
                    Err(error) => self.report.failed(&error),
                }
            }
        }
        Ok(())
    }

    /// What an idle agent costs at its proxy.
    pub(crate) async fn idle_agents(&mut self, args: &CompareArgs) -> anyhow::Result<()> {
        let count = args.agents.unwrap_or(self.times.idle_agents);
        let mut fleet = Fleet::start()?;
        let before = resident_bytes(fleet.proxy.id())?;
        let time = fleet.connect(count).await?;
        tokio::time::sleep(Duration::from_secs(1)).await;
        let near = resident_bytes(fleet.proxy.id())?.saturating_sub(before);
        let far = resident_bytes(fleet.agents()?)?;
        let each = |bytes: u64| bytes as f64 / 1024.0 / count as f64;
        let values = [
            ("near_kib", each(near)),
            ("far_kib", each(far)),
            ("seconds", time.as_secs_f64()),
        ];
        self.report
            .add(0, "node", &format!("agents {count}"), &values);
        Ok(())
    }

    /// A bulk download beside small requests, over a link with delay and loss.
    pub(crate) async fn link(&mut self, args: &CompareArgs) -> anyhow::Result<()> {
        let is_whole = Machine::is_root() && Path::new("/dev/net/tun").exists();
        let service = if is_whole {
            None
        } else {
            self.report.note(
                "The link with delay and loss: only `node` was measured, over a link of UDP \
                 sockets. For TCP it takes network namespaces and TUN devices, that is, root."
                    .to_owned(),
            );
            Some(self.service.addr())
        };
        let node = Node::new(&args.set);
        let mut subjects: Vec<(Box<dyn Subject>, String, &str)> = Vec::new();
        if is_whole {
            for congestion in ["cubic", "bbr"] {
                let name = format!("plain relay, kernel {}", congestion.to_uppercase());
                subjects.push((Box::new(Relay::Plain), name, congestion));
            }
        }
        subjects.push((Box::new(node.clone()), "node".into(), "cubic"));
        for congestion in ["cubic", "bbr"] {
            let other = node.clone().congestion(congestion);
            let name = other.name().to_owned();
            subjects.push((Box::new(other), name, "cubic"));
        }
        if is_whole {
            for peer in &args.peer {
                let subject = peer.subject(&args.set);
                let name = subject.name().to_owned();
                subjects.push((subject, name, "cubic"));
            }
        }
        for percent in self.times.loss_percents.iter().copied() {
            let config = LinkConfig {
                loss: f64::from(percent) / 100.0,
                ..LINK
            };
            for (subject, name, congestion) in &subjects {
                let load = format!("link {percent}");
                let over = Over {
                    config,
                    congestion,
                    streams: 1,
                    udp: service,
                };
                let measured = over.measure(&**subject, &self.service, &self.times).await;
                match measured.with_context(|| format!("{name}, {load}")) {
                    Ok(values) => self.report.add(0, name, &load, &values),
                    Err(error) => self.report.failed(&error),
                }
            }
        }
        Ok(())
    }
}

fn micros(latencies: &latency::Latencies) -> [(&'static str, f64); 3] {
    [
        ("p50_us", latencies.micros(0.5)),
        ("p99_us", latencies.micros(0.99)),
        ("p999_us", latencies.micros(0.999)),
    ]
}
