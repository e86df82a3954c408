//! Bytes that no honest peer would send, and more of them than any would.
//!
//! | file | subject |
//! |---|---|
//! | `agents` | agents and users with a good certificate and bad manners |
//! | `datagrams` | UDP that is no QUIC of ours |
//! | `proxies` | proxies with a good certificate and bad manners |
//! | `limits` | rates, numbers, times |
//! | `support` | frames that are off, sessions made by hand |

mod agents;
mod datagrams;
mod limits;
mod proxies;
mod support;

use anyhow::ensure;
use mesh_tests::Result;
use mesh_tests::fleet::Bystander;

/// Whatever anybody sends, with or without a certificate, is refused in so many words, counted
/// once, and neither grows the process nor disturbs the session beside it.
#[tokio::test]
async fn hostile_bytes() -> Result {
    let bystander = Bystander::start().await?;
    let memory = || {
        bystander
            .pair
            .proxy
            .metrics()?
            .get("process_resident_memory_bytes")
    };
    let before = memory()?;
    agents::first_streams(&bystander).await?;
    agents::control_streams(&bystander).await?;
    agents::further_streams(&bystander).await?;
    agents::users(&bystander).await?;
    datagrams::garbage(&bystander).await?;
    let grown = memory()? - before;
    ensure!(
        grown < f64::from(256u32 << 20),
        "the process has grown by {grown} bytes"
    );
    support::nobody_is_left(&bystander).await?;
    bystander.stop().await;
    Ok(())
}
