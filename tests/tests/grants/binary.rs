//! The real binary, from config files with grants.

use std::sync::Arc;

use anyhow::{Context as _, bail, ensure};
use certs::Credentials;
use mesh_proto::refusal::Reason;
use mesh_tests::fleet::Node;
use mesh_tests::installation::Site;
use mesh_tests::services::{Service, pattern};
use mesh_tests::{Result, binary, http, probe};
use node::agent::{Dialer, DialerError};
use node::config::AgentConfig;

use crate::support::echoed;

/// Dials until it is connected, and tells how the dial went.
async fn dial(dialer: &Dialer, target: &str, bytes: &[u8]) -> Result<Option<(Reason, String)>> {
    match dialer.dial(target).await {
        Ok(stream) => {
            echoed(stream.recv, stream.send, bytes).await?;
            Ok(None)
        }
        Err(DialerError::Refused(refused)) => Ok(Some((refused.reason, refused.message))),
        Err(other) => bail!("{other}"),
    }
}

/// A proxy and an agent as they are installed; the grants of the config file say what a second agent
/// may dial, and what may be dialled at the ingress.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_dials_needs_a_grant() -> Result {
    let (echo, other) = (Service::echo().await?, Service::echo().await?);
    let site = Site::new()?;
    let issue = ["certs", "issue", "agent", "a2", "--dir", "certs"];
    binary::must(site.dir(), &issue)?;
    let lines = format!(
        "kind = \"http\"\n\n\
         [[grant]]\nwho = [\"agent:a2\"]\nmay = [\"dial\"]\nagents = [\"a1\"]\ntargets = [\"127.0.0.0/8:{}\"]\n\n\
         [[grant]]\nwho = [\"ingress:*\"]\nmay = [\"dial\"]\ntargets = [\"service:*\"]\n",
        echo.addr.port()
    );
    let mesh = site.start(&[lines], &[echo.rule(), other.rule()])?;
    let file = |name: &str| mesh.dir().join("certs").join(name);
    let credentials = Credentials::load(&file("ca.pem"), &file("a2.pem"), &file("a2.key"))?;
    let config = AgentConfig::new(Arc::new(credentials), vec![mesh.quic().to_string()]);
    let agent = Node::agent(config).await?;
    let running = agent.0.agent().context("an agent")?;
    let connected = running.connected();
    probe::until("the agent is connected", || *connected.borrow() == 1).await?;

    let dialer = running.dialer("a1")?;
    let bytes = pattern(5, 8 << 20);
    let told = dial(&dialer, &echo.rule(), &bytes).await?;
    ensure!(told.is_none(), "{told:?}");
    let told = dial(&dialer, &other.rule(), &bytes).await?;
    let (reason, message) = told.context("it went through")?;
    ensure!(
        reason == Reason::NotAllowed && message.contains("no grant for agent:a2 covers that"),
        "{reason}: {message}"
    );
    ensure!(other.accepted() == 0);

    let path = format!("/client/a1/http/{}/", echo.addr);
    let answer = http::get(mesh.ingress(0)?, &path).await?;
    ensure!(
        (answer.status, answer.mesh_error()) == (403, "not_allowed")
            && answer
                .text()
                .contains("[[grant]] who = [\"ingress:127.0.0.1:"),
        "{} {}",
        answer.status,
        answer.text()
    );
    let [proxy, asked] = mesh.metrics().await?;
    ensure!(proxy.get(r#"mesh_dials_total{path="none",result="not_allowed"}"#)? == 2.0);
    ensure!(asked.sum("mesh_agent_dials_total") == 1.0);
    ensure!(agent.stop().await == 0);
    mesh.no_streams().await?;
    mesh.stop()
}
