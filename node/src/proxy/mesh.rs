//! The proxies of the cluster as this one knows them, by gossip: drives
//! [`mesh_proto::membership`], and tells agents and the rest of the proxy what comes of it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use mesh_proto::membership::{Event, GossipError, Known, Membership, Output, Settings, Standing};
use mesh_proto::name::NodeName;
use mesh_proto::time::Time;
use mesh_proto::wire::{Member, MemberState, Profile, ProfileError, RoutesHead};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::Shared;
use crate::changes::{Changes, Watcher};

/// How long agents believe what they are told of a proxy.
pub(super) const MEMBER_TTL: Duration = Duration::from_secs(180);

/// How often agents are told anew, so that what they know never expires while they are connected.
pub(super) const REFRESH_INTERVAL: Duration = Duration::from_secs(60);

/// How long agents are told of a proxy that is gone, so that every one of them hears of its end.
const GONE_FOR: Duration = MEMBER_TTL;

/// How long the routes of a proxy outlive its membership: it may be back at once.
const ROUTES_GRACE: Duration = Duration::from_secs(2);

/// The membership, shared. Its lock is held for one step of the state machine, never across an
/// await.
#[derive(Debug)]
pub(super) struct Mesh {
    core: Mutex<Membership>,
    own: NodeName,
    start: Instant,
    /// There may be something to do.
    stirred: Notify,
    /// What agents and peers are to hear of.
    version: Changes,
    /// The epoch of a newer start of this proxy's name.
    superseded: watch::Sender<Option<u64>>,
}

impl Mesh {
    /// Knows of this proxy alone.
    pub(super) fn new(own: Profile, seed: u64) -> Result<Self, ProfileError> {
        Ok(Self {
            own: own.name.clone(),
            core: Mutex::new(Membership::new(own, seed, Settings::default())?),
            start: Instant::now(),
            stirred: Notify::new(),
            version: Changes::default(),
            superseded: watch::Sender::new(None),
        })
    }

    fn now(&self) -> Time {
        Time::since_start(self.start.elapsed())
    }

    fn lock(&self) -> MutexGuard<'_, Membership> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One step of the state machine; the driver then looks at what has come of it.
    fn step<T>(&self, step: impl FnOnce(&mut Membership, Time) -> T) -> T {
        let result = step(&mut self.lock(), self.now());
        self.stirred.notify_one();
        result
    }

    /// Hears of every change of a member, this proxy too.
    pub(super) fn changes(&self) -> Watcher {
        self.version.watch()
    }

    fn changed(&self) {
        self.version.notify();
    }

    /// Hears of a newer start of this proxy's name.
    pub(super) fn superseded(&self) -> watch::Receiver<Option<u64>> {
        self.superseded.subscribe()
    }

    /// What this proxy tells of itself.
    pub(super) fn own(&self) -> Profile {
        self.lock().own().clone()
    }

    /// What this proxy tells of itself changes.
    ///
    /// # Errors
    /// When it is more than gossip can carry; nothing has changed then.
    pub(super) fn update_own(&self, change: impl FnOnce(&mut Profile)) -> Result<(), ProfileError> {
        self.step(|core, now| core.update_own(now, change))?;
        self.changed();
        Ok(())
    }

    /// From now on this proxy is about to leave.
    pub(super) fn drain(&self) {
        if let Err(error) = self.update_own(|own| own.draining = true) {
            tracing::error!(%error, "gossip cannot tell that this proxy drains: this is a defect of the program");
        }
    }

    /// How many rows this proxy's own routes have.
    pub(super) fn set_head(&self, head: RoutesHead) {
        self.step(|core, now| core.set_head(now, head));
    }

    /// A connection to a peer stands, and it has said hello.
    pub(super) fn connected(&self, peer: Profile) -> Standing {
        self.step(|core, now| core.connected(now, peer))
    }

    /// A peer tells of a change of itself.
    pub(super) fn told(&self, peer: Profile) -> Standing {
        self.step(|core, now| core.told(now, peer))
    }

    /// The last connection to a peer has ended.
    pub(super) fn closed(&self, peer: &NodeName) {
        self.step(|core, now| core.closed(now, peer));
    }

    /// A peer takes this proxy for dead.
    pub(super) fn taken_for_dead(&self, epoch: u64, revision: u32) {
        self.step(|core, now| core.taken_for_dead(now, epoch, revision));
        self.changed();
    }

    /// A packet of a peer.
    pub(super) fn receive(&self, from: &NodeName, datagram: &[u8]) -> Result<(), GossipError> {
        self.step(|core, now| core.receive(now, from, datagram))
    }

    /// The last words.
    pub(super) fn leave(&self) {
        self.step(Membership::leave);
    }

    /// The other proxies.
    pub(super) fn members(&self) -> Vec<Known> {
        self.lock().members().cloned().collect()
    }

    /// The state of another proxy; `None` when it is not known.
    pub(super) fn state(&self, name: &NodeName) -> Option<MemberState> {
        self.lock().member(name).map(|known| known.state)
    }

    /// Whether another proxy serves.
    pub(super) fn others_serve(&self) -> bool {
        let core = self.lock();
        core.members()
            .any(|known| matches!(known.state, MemberState::Alive | MemberState::Suspect))
    }

    /// The state of a peer's routes, as gossip has it.
    pub(super) fn head(&self, name: &NodeName) -> Option<RoutesHead> {
        self.lock().head(name)
    }

    /// How long ago that was.
    pub(super) fn age(&self, since: Time) -> Duration {
        self.now().since(since)
    }

    /// What agents are told: all proxies, this one too, in the order of their names. Those that are
    /// gone are among them for a while.
    pub(super) fn view(&self) -> Vec<Member> {
        let core = self.lock();
        let now = self.now();
        let mut view: Vec<Member> = core
            .members()
            .filter(|known| {
                !matches!(known.state, MemberState::Left | MemberState::Down)
                    || now.since(known.since) < GONE_FOR
            })
            .map(|known| member(&known.profile, known.state))
            .collect();
        let own = core.own();
        let state = if own.draining {
            MemberState::Draining
        } else {
            MemberState::Alive
        };
        view.push(member(own, state));
        view.sort_by(|a, b| a.name.cmp(&b.name));
        view
    }
}

fn member(profile: &Profile, state: MemberState) -> Member {
    Member {
        name: profile.name.clone(),
        group: profile.group.clone(),
        generation: profile.generation,
        epoch: profile.epoch,
        addresses: profile.addresses.clone(),
        state,
        ttl_ms: u64::try_from(MEMBER_TTL.as_millis()).unwrap_or(u64::MAX),
        ext: Vec::new(),
    }
}

/// Drives the membership until the proxy ends.
pub(super) async fn run(shared: Arc<Shared>) {
    let mesh = &shared.mesh;
    // Routes of members that are gone, and when they are forgotten.
    let mut orphaned: Vec<(NodeName, Instant)> = Vec::new();
    loop {
        let wake = step(&shared, &mut orphaned);
        let forget_at = orphaned.iter().map(|(_, at)| *at).min();
        let wake = wake.map(|time| mesh.start + time.elapsed());
        let asleep = async {
            match [wake, forget_at].into_iter().flatten().min() {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = shared.cut.cancelled() => break,
            () = mesh.stirred.notified() => {}
            () = asleep => {}
        }
    }
}

/// Does what is to be done now; returns when to look again.
fn step(shared: &Shared, orphaned: &mut Vec<(NodeName, Instant)>) -> Option<Time> {
    let mesh = &shared.mesh;
    let mut changed = false;
    loop {
        // Outside of the lock: what comes of an output may ask the membership again.
        let output = mesh.lock().poll(mesh.now());
        match output {
            None => break,
            Some(Output::Send { to, datagram }) => shared.links.send_datagram(&to, datagram),
            Some(Output::Event(event)) => {
                changed |= handle(shared, event, orphaned);
            }
        }
    }
    let now = Instant::now();
    orphaned.retain(|(name, at)| {
        let is_back = mesh.state(name).is_some_and(is_active);
        if !is_back && *at <= now {
            shared.forget_routes(name);
        }
        !is_back && *at > now
    });
    if changed {
        mesh.changed();
        shared
            .metrics
            .members(mesh.members().iter().map(|known| known.state));
    }
    mesh.lock().next_wake()
}

/// Whether a proxy in this state may serve.
pub(super) fn is_active(state: MemberState) -> bool {
    match state {
        MemberState::Alive
        | MemberState::Suspect
        | MemberState::Draining
        | MemberState::Other(_) => true,
        MemberState::Left | MemberState::Down => false,
    }
}

fn handle(shared: &Shared, event: Event, orphaned: &mut Vec<(NodeName, Instant)>) -> bool {
    let mesh = &shared.mesh;
    match event {
        Event::Changed(name) => {
            let state = mesh.state(&name);
            tracing::info!(peer = %name, state = state.map_or("unknown", state_name), "a proxy of the mesh has changed");
            if !state.is_some_and(is_active) && orphaned.iter().all(|(known, _)| *known != name) {
                orphaned.push((name, Instant::now() + ROUTES_GRACE));
            }
            true
        }
        Event::Removed(name) => {
            tracing::debug!(peer = %name, "a proxy that was gone is forgotten");
            shared.forget_routes(&name);
            true
        }
        Event::Head { name, .. } => {
            shared.routing.heard_of(&name);
            false
        }
        Event::Superseded { epoch } => {
            tracing::error!(
                own_epoch = shared.epoch,
                epoch,
                "another proxy is in the mesh under the name {}, started later or more often: this one takes no part any more; give each its own name, certificate and proxy.state_dir",
                mesh.own
            );
            mesh.superseded.send_replace(Some(epoch));
            true
        }
        Event::Renewed => {
            tracing::info!("the mesh took this proxy for dead, and hears that it lives");
            true
        }
    }
}

/// The word for a state, in logs, metrics and the admin API.
pub(super) fn state_name(state: MemberState) -> &'static str {
    match state {
        MemberState::Alive => "alive",
        MemberState::Suspect => "suspect",
        MemberState::Draining => "draining",
        MemberState::Left => "left",
        MemberState::Down => "down",
        MemberState::Other(_) => "other",
    }
}
