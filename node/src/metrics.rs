//! What both roles measure, and how series are made.
//!
//! Each role owns its metrics (`proxy::metrics`, `agent::metrics`) and [`crate::app`] registers
//! them. Labels come from closed sets, and each series exists from the start, so that a rate over
//! it is right from the first event.

use std::pin::pin;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use mesh_proto::close::ResetCode;
pub use prometheus::Registry;
use prometheus::core::Collector;
use prometheus::{
    Counter, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    TextEncoder,
};
use tokio::sync::Notify;

/// Two series of one name, or a name that Prometheus does not take: a defect of this program,
/// or two nodes in one registry.
pub type MetricsError = prometheus::Error;

/// All metrics of a registry in Prometheus' text format, version 0.0.4.
///
/// # Errors
/// When a collector gives what the format cannot hold.
pub fn encode(registry: &Registry) -> Result<String, MetricsError> {
    TextEncoder::new().encode_to_string(&registry.gather())
}

/// Registers a collector and hands it back.
pub(crate) fn registered<C: Collector + Clone + 'static>(
    registry: &Registry,
    collector: C,
) -> Result<C, MetricsError> {
    registry.register(Box::new(collector.clone()))?;
    Ok(collector)
}

/// A counter with one label, whose series for `values` exist from the start.
pub(crate) fn counter_vec(
    registry: &Registry,
    name: &str,
    help: &str,
    label: &str,
    values: impl IntoIterator<Item = &'static str>,
) -> Result<IntCounterVec, MetricsError> {
    let counter = registered(
        registry,
        IntCounterVec::new(Opts::new(name, help), &[label])?,
    )?;
    for value in values {
        counter.with_label_values(&[value]);
    }
    Ok(counter)
}

pub(crate) fn counter(
    registry: &Registry,
    name: &str,
    help: &str,
) -> Result<IntCounter, MetricsError> {
    registered(registry, IntCounter::new(name, help)?)
}

pub(crate) fn gauge(registry: &Registry, name: &str, help: &str) -> Result<IntGauge, MetricsError> {
    registered(registry, IntGauge::new(name, help)?)
}

pub(crate) fn histogram(
    registry: &Registry,
    name: &str,
    help: &str,
    buckets: &[f64],
) -> Result<Histogram, MetricsError> {
    let opts = HistogramOpts::new(name, help).buckets(buckets.to_vec());
    registered(registry, Histogram::with_opts(opts)?)
}

/// Buckets for times on a network, in seconds: from a loopback to a deadline.
pub(crate) const NETWORK_SECONDS: &[f64] = &[
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
];

/// What every node measures of its streams, and of itself.
#[derive(Debug, Clone)]
pub struct NodeMetrics {
    streams_open: IntGauge,
    /// What a stream that is dropped is reset with.
    drop_code: Arc<AtomicU32>,
    no_streams: Arc<Notify>,
    bytes_sent: IntCounter,
    bytes_received: IntCounter,
    flow_blocked: Counter,
    /// Streams cut because all stalled ones held more than `quic.buffer_bytes_max`.
    pub cut_as_stalled: IntCounter,
    /// Streams that were still open when the drain deadline came.
    pub cut_at_drain_deadline: IntCounter,
    /// Unix time at which the node's certificate ends.
    pub cert_expiry: IntGaugeVec,
    /// Round-trip times of QUIC connections, seen when a stream opens.
    pub rtt: Histogram,
    /// 1 while the node drains.
    pub draining: IntGauge,
    /// Whether the last reload of the config went well; so is the start's.
    pub last_reload_successful: IntGauge,
    /// Granted size of UDP receive buffers.
    pub udp_rcvbuf_bytes: IntGauge,
}

impl NodeMetrics {
    /// Makes the metrics and registers them.
    ///
    /// # Errors
    /// When the registry has them already.
    pub fn new(registry: &Registry) -> Result<Self, MetricsError> {
        let bytes = counter_vec(
            registry,
            "mesh_stream_bytes_total",
            "Payload carried by tunnel streams, by direction as this node sees it.",
            "direction",
            ["sent", "received"],
        )?;
        let cut = counter_vec(
            registry,
            "mesh_streams_cut_total",
            "Streams that this node reset, by reason.",
            "reason",
            ["stalled", "drain_deadline"],
        )?;
        let build = registered(
            registry,
            IntGaugeVec::new(
                Opts::new("mesh_build_info", "Always 1; the labels tell the build."),
                &["version"],
            )?,
        )?;
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        Ok(Self {
            streams_open: gauge(
                registry,
                "mesh_streams_open",
                "Tunnel streams that are open at this moment.",
            )?,
            drop_code: Arc::new(AtomicU32::new(ResetCode::Cancelled.code())),
            no_streams: Arc::new(Notify::new()),
            bytes_sent: bytes.with_label_values(&["sent"]),
            bytes_received: bytes.with_label_values(&["received"]),
            flow_blocked: registered(
                registry,
                Counter::new(
                    "mesh_stream_flow_blocked_seconds_total",
                    "Time for which senders waited for the other side's flow control or the network.",
                )?,
            )?,
            cut_as_stalled: cut.with_label_values(&["stalled"]),
            cut_at_drain_deadline: cut.with_label_values(&["drain_deadline"]),
            cert_expiry: registered(
                registry,
                IntGaugeVec::new(
                    Opts::new(
                        "mesh_cert_expiry_timestamp_seconds",
                        "Unix time at which a certificate of this node ends.",
                    ),
                    &["certificate"],
                )?,
            )?,
            rtt: histogram(
                registry,
                "mesh_quic_rtt_seconds",
                "Smoothed round-trip time of a QUIC connection, observed when a stream opens.",
                NETWORK_SECONDS,
            )?,
            last_reload_successful: {
                let successful = gauge(
                    registry,
                    "mesh_config_last_reload_successful",
                    "1 when the config was last read without an error, at the start or by SIGHUP.",
                )?;
                successful.set(1);
                successful
            },
            draining: gauge(
                registry,
                "mesh_draining",
                "1 while this node drains, else 0.",
            )?,
            udp_rcvbuf_bytes: gauge(
                registry,
                "mesh_udp_rcvbuf_bytes",
                "Receive buffer that the kernel granted to a UDP socket (net.core.rmem_max caps it).",
            )?,
        })
    }

    /// Streams that are open now.
    #[must_use]
    pub fn streams_open(&self) -> i64 {
        self.streams_open.get()
    }

    /// From now on streams are dropped because a drain has come to its deadline.
    pub(crate) fn set_drain_deadline_passed(&self) {
        self.drop_code
            .store(ResetCode::DrainDeadline.code(), Ordering::Relaxed);
    }

    /// Completes when no stream is open.
    pub async fn no_streams(&self) {
        loop {
            let mut closed = pin!(self.no_streams.notified());
            closed.as_mut().enable();
            if self.streams_open.get() == 0 {
                return;
            }
            closed.await;
        }
    }
}

/// Called when a metered stream has ended.
pub type OnEnd = Box<dyn FnOnce(&StreamTotals) + Send + Sync>;

/// What a stream has carried.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StreamTotals {
    /// Bytes of payload from this node.
    pub sent_bytes: u64,
    /// Bytes of payload to this node.
    pub received_bytes: u64,
    /// Why the other side's bytes ended before their end; `None` when they did not.
    pub cut: Option<&'static str>,
}

/// Counts one stream: open from its making until its drop, exactly once on every path.
pub struct StreamMeter {
    metrics: NodeMetrics,
    sent_bytes: AtomicU64,
    received_bytes: AtomicU64,
    cut: OnceLock<&'static str>,
    on_end: OnceLock<OnEnd>,
}

impl std::fmt::Debug for StreamMeter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StreamMeter")
            .field("totals", &self.totals())
            .finish_non_exhaustive()
    }
}

impl StreamMeter {
    /// A stream opens.
    #[must_use]
    pub fn open(metrics: &NodeMetrics) -> Arc<Self> {
        metrics.streams_open.inc();
        Arc::new(Self {
            metrics: metrics.clone(),
            sent_bytes: AtomicU64::new(0),
            received_bytes: AtomicU64::new(0),
            cut: OnceLock::new(),
            on_end: OnceLock::new(),
        })
    }

    /// Lets `on_end` hear of the stream's end. Of several, the first is heard.
    pub fn on_end(&self, on_end: OnEnd) {
        let _ = self.on_end.set(on_end);
    }

    /// What was carried so far.
    #[must_use]
    pub fn totals(&self) -> StreamTotals {
        StreamTotals {
            sent_bytes: self.sent_bytes.load(Ordering::Relaxed),
            received_bytes: self.received_bytes.load(Ordering::Relaxed),
            cut: self.cut.get().copied(),
        }
    }

    /// Nothing more comes from the other side, though it has not ended the stream. Of several causes
    /// the first counts.
    pub(crate) fn note_cut(&self, cause: &'static str) {
        let _ = self.cut.set(cause);
    }

    /// What the stream is reset with when it is dropped before its end.
    pub(crate) fn drop_code(&self) -> ResetCode {
        let code = self.metrics.drop_code.load(Ordering::Relaxed);
        ResetCode::from_code(code).unwrap_or(ResetCode::Cancelled)
    }

    pub(crate) fn add_sent(&self, bytes: usize) {
        self.sent_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        self.metrics.bytes_sent.inc_by(bytes as u64);
    }

    pub(crate) fn add_received(&self, bytes: usize) {
        self.received_bytes
            .fetch_add(bytes as u64, Ordering::Relaxed);
        self.metrics.bytes_received.inc_by(bytes as u64);
    }

    pub(crate) fn add_flow_blocked(&self, time: Duration) {
        self.metrics.flow_blocked.inc_by(time.as_secs_f64());
    }
}

impl Drop for StreamMeter {
    fn drop(&mut self) {
        self.metrics.streams_open.dec();
        if self.metrics.streams_open.get() == 0 {
            self.metrics.no_streams.notify_waiters();
        }
        let totals = self.totals();
        if let Some(on_end) = self.on_end.take() {
            on_end(&totals);
        }
    }
}
