//! Sessions of other clusters end when those are trusted no more.

use std::sync::Arc;

use super::Shared;
use crate::trust::Side;

/// Looks at every session of another cluster when what is trusted has changed, until the proxy ends.
pub(super) async fn enforce(shared: Arc<Shared>) {
    let mut changes = shared.trust.changes();
    while shared
        .cut
        .run_until_cancelled(changes.changed())
        .await
        .is_some()
    {
        for session in shared.sessions.all() {
            let Some(cluster) = session.agent.cluster() else {
                continue;
            };
            let judged = shared
                .trust
                .judge(&cluster, &session.connection, Side::Client);
            if let Err(why) = judged {
                session.distrust(&why);
            }
        }
    }
}
