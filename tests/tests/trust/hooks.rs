//! The say of an application that embeds a node.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{bail, ensure};
use certs::Kind;
use mesh_proto::principal::Principal;
use mesh_proto::refusal::Reason;
use mesh_proto::wire::{ALPN_AGENT, ALPN_USER, Answer};
use mesh_tests::fleet::{
    Node, Pair, agent_config, http_ingress, proxy_config, service, tcp_ingress,
};
use mesh_tests::pki::Pki;
use mesh_tests::services::{Service, echoes};
use mesh_tests::{Result, http, probe, quic};
use node::Proxy;
use node::hooks::{Connected, DialInfo, Hooks};

use crate::support::{CLUSTER, dial, dial_frame, lure, server_tls};

type Seen<T> = Arc<Mutex<Vec<T>>>;

fn seen<T: Clone>(list: &Seen<T>) -> Vec<T> {
    list.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

fn note<T>(list: &Seen<T>, entry: T) {
    list.lock()
        .unwrap_or_else(PoisonError::into_inner)
        .push(entry);
}

/// An authorizer of either role sees who asks for what, and has its say beside the config.
#[tokio::test]
async fn authorizers_have_a_say() -> Result {
    let (echo, secret) = (Service::echo().await?, Service::echo().await?);
    let (at_proxy, at_agent): (Seen<DialInfo>, Seen<DialInfo>) = Default::default();
    let hooks = |list: &Seen<DialInfo>, refuse: fn(&DialInfo) -> Option<&'static str>| {
        let list = list.clone();
        let authorizer = move |info: &DialInfo| {
            note(&list, info.clone());
            refuse(info).map_or(Ok(()), |why| Err(why.to_owned()))
        };
        Hooks {
            authorizer: Some(Arc::new(authorizer)),
            ..Hooks::default()
        }
    };
    let on_proxy = hooks(&at_proxy, |info| {
        (info.principal.to_string() == "user:eve").then_some("eve is on holiday")
    });
    let on_agent = hooks(&at_agent, |info| {
        let is_user = matches!(info.principal, Principal::User(_));
        (!is_user && info.target.to_string().starts_with("service:"))
            .then_some("services are for users with a certificate")
    });
    let pki = Pki::new(CLUSTER)?;
    let mut config = proxy_config(&pki, "proxy-1")?;
    config.ingresses = vec![http_ingress(), tcp_ingress("a1", "service:echo")?];
    let proxy = Node::proxy_with(config, on_proxy).await?;
    let mut config = agent_config(&pki, "a1", &[proxy.quic_addr()?], &[echo.rule()])?;
    config.services = vec![service("echo", echo.addr)?];
    let agent = Node::agent_with(config, on_agent).await?;
    proxy.sessions(1).await?;

    let mut users = BTreeMap::new();
    for name in ["alice", "eve"] {
        let credentials = pki.issue(Kind::User, name)?;
        let raw = quic::connect(proxy.quic_addr()?, &credentials, ALPN_USER).await?;
        users.insert(name, raw);
    }
    let ask =
        async |user: &str, target: String| -> Result<std::result::Result<(), (Reason, String)>> {
            let frame = dial_frame(target.parse()?, "a1")?;
            Ok(match quic::ask(&users[user].connection, &frame).await?.0 {
                Answer::Opened(_) => Ok(()),
                Answer::Refused(refused) => Err((refused.reason, refused.message)),
            })
        };

    ensure!(ask("alice", echo.rule()).await? == Ok(()));
    ensure!(ask("alice", "service:echo".into()).await? == Ok(()));
    let principal: Principal = "user:alice".parse()?;
    for list in [&at_proxy, &at_agent] {
        let seen = seen(list);
        ensure!(seen.len() == 2, "{seen:?}");
        for info in seen {
            ensure!(
                info.principal == principal && info.agent.as_str() == "a1",
                "{info:?}"
            );
        }
    }
    let refused = ask("alice", secret.rule()).await?;
    ensure!(
        matches!(&refused, Err((Reason::NotAllowed, why)) if why.contains("agent.allow")),
        "{refused:?}"
    );

    // Refused at the proxy: the agent hears nothing of it.
    let before = seen(&at_agent).len();
    let refused = ask("eve", echo.rule()).await?;
    ensure!(
        refused == Err((Reason::NotAllowed, "eve is on holiday".into())),
        "{refused:?}"
    );
    ensure!(seen(&at_agent).len() == before);

    // Refused at the agent: the text reaches the user.
    let why = "services are for users with a certificate";
    let accepted = echo.accepted();
    let answer = http::get(proxy.ingress(0)?, "/client/a1/http/service:echo/").await?;
    ensure!(
        (answer.status, answer.mesh_error()) == (403, "not_allowed") && answer.text().contains(why),
        "{} {}",
        answer.status,
        answer.text()
    );
    ensure!(echoes(proxy.ingress(1)?, b"me").await.is_err());
    let dialled = dial(&proxy, "a1", "service:echo").await?;
    ensure!(dialled == Err(Reason::NotAllowed), "{dialled:?}");
    ensure!(echo.accepted() == accepted && secret.accepted() == 0);
    let principals: Vec<String> = seen(&at_agent)
        .iter()
        .map(|info| info.principal.to_string())
        .collect();
    for listen in [proxy.ingress(0)?, proxy.ingress(1)?] {
        let principal = format!("ingress:{listen}");
        ensure!(
            principals.contains(&principal),
            "{principal} is not in {principals:?}"
        );
    }

    agent.stop().await;
    proxy.stop().await;
    Ok(())
}

/// `on_connect` hears once of each connection, on both sides, when both have said hello.
#[tokio::test]
async fn on_connect_hears_of_connections() -> Result {
    let pki = Pki::new(CLUSTER)?;
    let (at_proxy, at_agent): (Seen<Connected>, Seen<Connected>) = Default::default();
    let hooks = |list: &Seen<Connected>| {
        let list = list.clone();
        let on_connect = Arc::new(move |connected: &Connected| note(&list, connected.clone()));
        Hooks {
            on_connect: Some(on_connect),
            ..Hooks::default()
        }
    };
    let mut config = proxy_config(&pki, "proxy-1")?;
    config.common.quic.handshake_timeout = Duration::from_secs(1);
    let proxy = Node::proxy_with(config, hooks(&at_proxy)).await?;
    let stranger = Pki::new("other.example.com")?;
    let lure = lure(server_tls(&stranger, None)?)?;
    let config = agent_config(&pki, "a1", &[proxy.quic_addr()?], &[])?;
    let agent = Node::agent_with(config, hooks(&at_agent)).await?;
    let config = agent_config(&pki, "a3", &[lure.addr], &[])?;
    let lured = Node::agent_with(config, hooks(&at_agent)).await?;
    proxy.sessions(1).await?;
    probe::until("the agent's hook", || !seen(&at_agent).is_empty()).await?;

    // Neither a handshake without a hello nor a user is a connection of an agent.
    let silent = quic::connect(
        proxy.quic_addr()?,
        &*pki.issue(Kind::Agent, "a2")?,
        ALPN_AGENT,
    )
    .await?;
    silent.connection.closed().await;
    let alice = quic::connect(
        proxy.quic_addr()?,
        &*pki.issue(Kind::User, "alice")?,
        ALPN_USER,
    )
    .await?;
    let untrusted = "mesh_agent_connects_total{result=\"untrusted\"}";
    probe::until("the agent is lured", || {
        lured
            .metrics()
            .and_then(|metrics| metrics.get(untrusted))
            .is_ok_and(|tries| tries >= 1.0)
    })
    .await?;

    let session = proxy.as_proxy().map(Proxy::sessions)?;
    let [session] = &session[..] else {
        bail!("{} sessions", session.len())
    };
    for (list, remote) in [(&at_proxy, session.remote), (&at_agent, proxy.quic_addr()?)] {
        let seen = seen(list);
        let [connected] = &seen[..] else {
            bail!("heard of {seen:?}")
        };
        ensure!(
            (
                connected.agent.as_str(),
                connected.proxy.as_str(),
                connected.remote
            ) == ("a1", "proxy-1", remote),
            "{connected:?}"
        );
    }
    drop(alice);
    lured.stop().await;
    Pair {
        pki: Arc::new(pki),
        proxy,
        agent,
    }
    .stop()
    .await;
    Ok(())
}
