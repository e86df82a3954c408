//! Grants for users, tokens and ingresses.

use anyhow::ensure;
use mesh_proto::refusal::Reason;
use mesh_proto::wire::Answer;
use mesh_tests::fleet::http_ingress;
use mesh_tests::{Result, http, quic};

use crate::support::{Mesh, dial_frame, grant};

/// What a user is told who dials.
async fn told(
    mesh: &Mesh,
    user: &str,
    agent: &str,
    target: &str,
) -> Result<Option<(Reason, String)>> {
    let raw = mesh.user(user).await?;
    let frame = dial_frame(agent, target, "user:alice")?;
    Ok(match quic::ask(&raw.connection, &frame).await?.0 {
        Answer::Opened(_) => None,
        Answer::Refused(refused) => Some((refused.reason, refused.message)),
    })
}

/// Users may dial everything until a grant names users; ingresses go on as before.
#[tokio::test]
async fn users_are_restricted_by_grants() -> Result {
    let free = Mesh::start(Vec::new(), &["db-1", "web"]).await?;
    for user in ["alice", "bob"] {
        for agent in ["db-1", "web"] {
            let told = told(&free, user, agent, "service:echo").await?;
            ensure!(told.is_none(), "{user} {agent}: {told:?}");
        }
    }
    free.stop().await?;

    let grants = vec![grant(&["user:alice"], &["db-*"], &["service:*"])?];
    let mesh = Mesh::start_with(&["db-1", "web"], |config| {
        config.grants = grants;
        config.ingresses = vec![http_ingress()];
    })
    .await?;
    let echo = mesh.echoes[0].rule();
    for (user, agent, target, allowed) in [
        ("alice", "db-1", "service:echo", true),
        ("alice", "db-1.test.example.com", "service:echo", true),
        ("alice", "db-1", echo.as_str(), false),
        ("alice", "web", "service:echo", false),
        ("bob", "db-1", "service:echo", false),
    ] {
        let told = told(&mesh, user, agent, target).await?;
        match &told {
            None => ensure!(allowed, "{user} {agent} {target}"),
            Some((reason, message)) => ensure!(
                !allowed
                    && *reason == Reason::NotAllowed
                    && message.contains(&format!("[[grant]] who = [\"user:{user}\"]")),
                "{user} {agent} {target}: {told:?}"
            ),
        }
    }
    // No grant names an ingress: whoever reaches it dials as before. (The echo is no web server.)
    let accepted = mesh.echoes[1].accepted();
    let answer = http::get(mesh.proxy.ingress(0)?, "/client/web/http/service:echo/").await;
    ensure!(mesh.echoes[1].accepted() == accepted + 1, "{answer:?}");
    mesh.stop().await
}

/// The same at an ingress: the answer names the grant.
#[tokio::test]
async fn ingresses_are_restricted_by_grants() -> Result {
    let grants = vec![grant(&["ingress:192.0.2.1:80"], &[], &[])?];
    let mesh = Mesh::start_with(&["web"], |config| {
        config.grants = grants;
        config.ingresses = vec![http_ingress()];
    })
    .await?;
    let ingress = mesh.proxy.ingress(0)?;
    let answer = http::get(ingress, "/client/web/http/service:echo/").await?;
    let add = format!(
        "[[grant]] who = [\"ingress:{ingress}\"], may = [\"dial\"], agents = [\"web\"], targets = [\"service:echo\"]"
    );
    ensure!(
        (answer.status, answer.mesh_error()) == (403, "not_allowed")
            && answer.text().contains(&add),
        "{} {}",
        answer.status,
        answer.text()
    );
    ensure!(mesh.asked(0)? == 0.0);
    mesh.stop().await
}
