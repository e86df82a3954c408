//! Users who ask for more than others, or leave no time for it.

use std::future::Future as _;
use std::task::{Context, Poll, Waker};

use anyhow::{bail, ensure};
use mesh_proto::refusal::Reason;
use mesh_proto::wire::{Answer, Open};
use mesh_tests::{Result, probe, quic};
use quinn::{Connection, RecvStream, SendStream};

use crate::support::{Mesh, dial_frame};

/// A stream, if one more is allowed now.
fn open(connection: &Connection) -> Option<(SendStream, RecvStream)> {
    let mut context = Context::from_waker(Waker::noop());
    match std::pin::pin!(connection.open_bi()).poll(&mut context) {
        Poll::Ready(halves) => halves.ok(),
        Poll::Pending => None,
    }
}

/// A user's connection costs what it uses: few streams are allowed at first, more as they are used,
/// and `quic.streams_max` in the end.
#[tokio::test]
async fn streams_of_users_are_allowed_as_they_are_used() -> Result {
    const MAX: u32 = 300;
    let mesh = Mesh::start_with(&["a1"], |config| config.common.quic.streams_max = MAX).await?;
    let user = mesh.user("alice").await?;
    let mut streams = Vec::new();
    // The proxy does not hear of what is opened before something is sent on it.
    probe::until("the first are allowed", || {
        streams.extend(open(&user.connection));
        streams.len() == 64
    })
    .await?;
    ensure!(open(&user.connection).is_none(), "more than the first");

    let frame = dial_frame("a1", "service:echo", "user:alice")?;
    for index in 0..MAX as usize {
        if index == streams.len() {
            streams.push(user.connection.open_bi().await?);
        }
        let (send, recv) = &mut streams[index];
        quic::write(send, &frame).await?;
        let answer = quic::read::<Answer>(recv).await?;
        ensure!(matches!(answer, Answer::Opened(_)), "{index}: {answer:?}");
    }
    ensure!(open(&user.connection).is_none(), "more than streams_max");
    // Half of them end, and places come back.
    streams.truncate(MAX as usize / 2);
    streams.push(user.connection.open_bi().await?);
    drop((streams, user));
    mesh.stop().await
}

/// A dial without any time says that, and not that there is no such agent.
#[tokio::test]
async fn a_dial_without_time_is_too_late() -> Result {
    let mesh = Mesh::start(Vec::new(), &["a1"]).await?;
    let user = mesh.user("alice").await?;
    let Open::Dial(mut dial) = dial_frame("a1", "service:echo", "user:alice")? else {
        bail!("no dial")
    };
    dial.deadline_ms = 0;
    let (answer, ..) = quic::ask(&user.connection, &Open::Dial(dial)).await?;
    let Answer::Refused(refused) = answer else {
        bail!("{answer:?}")
    };
    ensure!(refused.reason == Reason::Timeout, "{refused:?}");
    drop(user);
    mesh.stop().await
}
