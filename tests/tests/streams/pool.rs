//! Upstream connections of the http ingress: shared by requests of one agent and one principal.

use std::collections::HashMap;
use std::sync::Arc;

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use mesh_tests::Result;
use mesh_tests::fleet::{Node, Pair, agent_config, http_ingress};
use mesh_tests::http::Client;
use node::config::IngressAuth;
use node::config::secret::TokenTable;

use crate::support::pages;

/// Two agents with the same target never share a connection, nor do two principals; one principal
/// at one agent does.
#[tokio::test]
async fn upstream_pool_is_per_agent() -> Result {
    let service = pages(|number| number.to_string().into()).await?;
    let tokens = TokenTable::from_text("ci:0123456789abcdef0123\nalice:fedcba9876543210fedc\n")
        .map_err(|errors| anyhow::anyhow!("{errors:?}"))?;
    let mut ingress = http_ingress();
    ingress.auth = IngressAuth::Tokens(Arc::new(tokens));
    let pair = Pair::start(&[service.rule()], vec![ingress, http_ingress()]).await?;
    let quic = pair.proxy.quic_addr()?;
    let _second = Node::agent(agent_config(&pair.pki, "a2", &[quic], &[service.rule()])?).await?;
    pair.proxy.sessions(2).await?;

    // One connection of a user carries all: what is kept apart is kept apart by the proxy alone.
    let mut guarded = Client::connect(pair.proxy.ingress(0)?).await?;
    let mut open = Client::connect(pair.proxy.ingress(1)?).await?;
    let mut used: HashMap<String, (String, usize)> = HashMap::new();
    for round in 0..10 {
        for agent in ["a1", "a2", "a1.test.example.com"] {
            let whose = ["0123456789abcdef0123", "fedcba9876543210fedc", ""];
            for token in whose {
                let path = format!("/client/{agent}/http/{}/{round}", service.addr);
                let mut request = Request::get(path);
                if !token.is_empty() {
                    request = request.header("x-mesh-token", token);
                }
                let request = request.body(Full::<Bytes>::default())?;
                let client = if token.is_empty() {
                    &mut open
                } else {
                    &mut guarded
                };
                let answer = client.ask(request).await?;
                ensure!(answer.status == 200, "{}: {}", answer.status, answer.text());
                // Both names of the agent are one agent.
                let agent = agent.split('.').next().context("no agent")?;
                let (user, times) = used
                    .entry(answer.text())
                    .or_insert((format!("{agent} {token}"), 0));
                ensure!(
                    *user == format!("{agent} {token}"),
                    "{user} shares with {agent} {token}"
                );
                *times += 1;
            }
        }
    }
    ensure!(
        used.len() == 6,
        "{} connections for 2 agents and 3 principals",
        used.len()
    );
    ensure!(
        service.accepted() == 6,
        "{} connections",
        service.accepted()
    );
    Ok(())
}
