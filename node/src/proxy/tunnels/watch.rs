//! Keeps what is known of the store up to date.

use std::sync::Arc;

use mesh_proto::tunnel::KEY_PREFIX;
use rand::rngs::StdRng;

use super::Resources;
use super::gauges::Operation;
use crate::store::Watched;

/// Watches the store for as long as the proxy runs. It never ends by itself: a store that cannot be
/// read is tried again, and changes nothing meanwhile.
pub(in crate::proxy) async fn run(resources: Arc<Resources>, randomness: StdRng) {
    let errors = resources.errors.clone();
    let mut watched = Watched::new(resources.store.clone(), KEY_PREFIX, randomness)
        .on_failure(move |_| errors.count(Operation::Watch));
    loop {
        let update = watched.next().await;
        resources.take(&update);
    }
}
