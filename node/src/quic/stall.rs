//! A bound on what all stalled streams of a node hold together.
//!
//! QUIC's windows bound each stream and each connection. A node with many connections needs one
//! bound more, or enough readers that stand still fill its memory. A receiving half is *holding*
//! from its start, or a read that gave bytes, until a read that found none, so a half that holds and was not read
//! for a while is stalled, and quinn keeps at most one stream window for it. When all stalled
//! halves could exceed the node's budget, the longest-stalled are cut.
//!
//! As long as the open streams together could not exceed the budget, nothing is watched at all.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use mesh_proto::close::ResetCode;
use prometheus::IntCounter;
use quinn::RecvStream;
use tokio::sync::Notify;

/// Interval of the looks at the streams, while there is reason to look.
pub const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// Looks without a read after which a holding half counts as stalled.
const STALLED_LOOKS: u64 = 2;

/// A stream's receiving half, shared by its reader and the budget.
#[derive(Debug)]
pub(super) struct RecvSlot {
    stream: Mutex<RecvStream>,
    /// The look at which bytes were last read; [`WAITING`] while there are none to read.
    held_since: AtomicU64,
    cut: AtomicBool,
    cut_notice: Notify,
    id: u64,
    budget: Arc<StallBudget>,
}

const WAITING: u64 = u64::MAX;

impl RecvSlot {
    /// The stream. The lock is held for one poll, never across an await.
    pub(super) fn stream(&self) -> MutexGuard<'_, RecvStream> {
        self.stream.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn mark_holding(&self) {
        self.held_since
            .store(self.budget.looks.load(Ordering::Relaxed), Ordering::Relaxed);
    }

    pub(super) fn mark_waiting(&self) {
        self.held_since.store(WAITING, Ordering::Relaxed);
    }

    pub(super) fn is_cut(&self) -> bool {
        self.cut.load(Ordering::Acquire)
    }

    /// Completes when the budget has cut this half.
    pub(super) async fn cut(&self) {
        loop {
            let notified = self.cut_notice.notified();
            if self.is_cut() {
                return;
            }
            notified.await;
        }
    }

    fn cut_now(&self) {
        self.cut.store(true, Ordering::Release);
        // Frees what quinn holds for the stream, and gives its window back to the connection. An
        // error means that the stream has ended meanwhile.
        let _ = self.stream().stop(ResetCode::StalledTooLong.code().into());
        self.cut_notice.notify_waiters();
    }
}

impl Drop for RecvSlot {
    fn drop(&mut self) {
        self.budget.remove(self.id);
    }
}

/// The budget of one node.
#[derive(Debug)]
pub struct StallBudget {
    stream_window_bytes: u64,
    buffer_bytes_max: u64,
    looks: AtomicU64,
    slots: Mutex<Slots>,
    wake: Notify,
    cut: IntCounter,
}

#[derive(Debug, Default)]
struct Slots {
    next_id: u64,
    by_id: BTreeMap<u64, Weak<RecvSlot>>,
}

impl StallBudget {
    /// A budget of `buffer_bytes_max`, with streams that hold at most `stream_window_bytes` each;
    /// `cut` counts the streams that it cuts.
    #[must_use]
    pub fn new(stream_window_bytes: u32, buffer_bytes_max: u64, cut: IntCounter) -> Arc<Self> {
        Arc::new(Self {
            stream_window_bytes: stream_window_bytes.into(),
            buffer_bytes_max,
            looks: AtomicU64::new(0),
            slots: Mutex::default(),
            wake: Notify::new(),
            cut,
        })
    }

    pub(super) fn watch(self: &Arc<Self>, stream: RecvStream) -> Arc<RecvSlot> {
        let mut slots = self.slots();
        let id = slots.next_id;
        slots.next_id += 1;
        let slot = Arc::new(RecvSlot {
            stream: Mutex::new(stream),
            // Until the first read finds nothing: a half that nobody ever reads holds its window too.
            held_since: AtomicU64::new(self.looks.load(Ordering::Relaxed)),
            cut: AtomicBool::new(false),
            cut_notice: Notify::new(),
            id,
            budget: self.clone(),
        });
        slots.by_id.insert(id, Arc::downgrade(&slot));
        if self.could_exceed(slots.by_id.len()) {
            self.wake.notify_one();
        }
        slot
    }

    fn remove(&self, id: u64) {
        self.slots().by_id.remove(&id);
    }

    fn slots(&self) -> MutexGuard<'_, Slots> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn could_exceed(&self, streams: usize) -> bool {
        (streams as u64).saturating_mul(self.stream_window_bytes) > self.buffer_bytes_max
    }

    /// Keeps the budget for as long as it is polled. Sleeps while the budget cannot be exceeded.
    pub async fn keep(self: Arc<Self>) {
        loop {
            if !self.could_exceed(self.slots().by_id.len()) {
                self.wake.notified().await;
                continue;
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
            self.look();
        }
    }

    fn look(&self) {
        let now = self.looks.fetch_add(1, Ordering::Relaxed) + 1;
        // Collected whole before any is dropped: dropping the last holder of a slot takes the lock.
        let open: Vec<Arc<RecvSlot>> = self
            .slots()
            .by_id
            .values()
            .filter_map(Weak::upgrade)
            .collect();
        let mut stalled: Vec<(u64, Arc<RecvSlot>)> = open
            .into_iter()
            .filter_map(|slot| {
                let since = slot.held_since.load(Ordering::Relaxed);
                let is_stalled =
                    since != WAITING && now - since.min(now) >= STALLED_LOOKS && !slot.is_cut();
                is_stalled.then_some((since, slot))
            })
            .collect();
        let allowed = usize::try_from(self.buffer_bytes_max / self.stream_window_bytes.max(1))
            .unwrap_or(usize::MAX);
        let Some(excess) = stalled
            .len()
            .checked_sub(allowed)
            .filter(|excess| *excess > 0)
        else {
            return;
        };
        stalled.sort_by_key(|(since, slot)| (*since, slot.id));
        for (_, slot) in &stalled[..excess] {
            slot.cut_now();
        }
        self.cut.inc_by(excess as u64);
        tracing::warn!(
            cut = excess,
            stalled = stalled.len(),
            buffer_bytes_max = self.buffer_bytes_max,
            "readers stood still and held more than quic.buffer_bytes_max; the longest-stalled \
             streams were reset: raise the limit, or find the readers in the access log"
        );
    }
}
