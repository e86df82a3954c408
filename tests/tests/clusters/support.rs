//! Clusters of real proxies in this process.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, ensure};
use certs::ForeignAuthority;
use mesh_proto::allow::AllowList;
use mesh_proto::refusal::Reason;
use mesh_proto::tunnel::{Draft, Tunnel};
use mesh_tests::fleet::{Node, agent_config, http_ingress, proxy_config};
use mesh_tests::pki::Pki;
use mesh_tests::services::pattern;
use mesh_tests::{Result, probe};
use node::config::{ProxyConfig, TrustConfig};
use node::hooks::{DialInfo, Hooks};
use node::proxy::DialerError;
use node::proxy::tunnels::TunnelState;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

pub(crate) const A: &str = "a.example.com";
pub(crate) const B: &str = "b.example.com";

/// A cluster.
pub(crate) struct Site {
    pub(crate) pki: Arc<Pki>,
    pub(crate) proxies: Vec<Node>,
    /// Every dial that its proxies were asked for, as `principal agent`.
    pub(crate) asked: Arc<Mutex<Vec<String>>>,
}

/// What a proxy trusts: another cluster, and what that may reach.
pub(crate) fn trust(pki: &Pki, allow: &[String]) -> Result<TrustConfig> {
    let cluster = pki.authority().cluster().clone();
    Ok(TrustConfig {
        authority: ForeignAuthority::from_pem(
            &cluster,
            Path::new("other-ca.pem"),
            pki.authority().ca_pem().as_bytes(),
        )?,
        cluster,
        allow: rules(allow)?,
    })
}

pub(crate) fn rules(allow: &[String]) -> Result<AllowList> {
    let rules: std::result::Result<_, _> = allow.iter().map(|rule| rule.parse()).collect();
    Ok(AllowList(rules?))
}

impl Site {
    /// Starts `count` proxies, each with an http ingress, that are a mesh when this returns.
    pub(crate) async fn start(
        pki: &Arc<Pki>,
        count: usize,
        mut change: impl FnMut(usize, &mut ProxyConfig) -> Result,
    ) -> Result<Self> {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let mut proxies: Vec<Node> = Vec::new();
        let letter = pki.authority().cluster().as_str().chars().next();
        for index in 0..count {
            let name = format!("{}{}", letter.context("a name")?, index + 1);
            let mut config = proxy_config(pki, &name)?;
            config.ingresses = vec![http_ingress()];
            for before in &proxies {
                config.peers.push(before.quic_addr()?.to_string());
            }
            change(index, &mut config)?;
            let seen = asked.clone();
            let hooks = Hooks {
                authorizer: Some(Arc::new(move |dial: &DialInfo| {
                    let line = format!("{} {}", dial.principal, dial.agent);
                    seen.lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .push(line);
                    Ok(())
                })),
                ..Hooks::default()
            };
            proxies.push(Node::proxy_with(config, hooks).await?);
        }
        let site = Self {
            pki: pki.clone(),
            proxies,
            asked,
        };
        let is_meshed = |proxy: &Node| {
            let peers = proxy.as_proxy().map(node::Proxy::peers).unwrap_or_default();
            let connected = peers.iter().filter(|peer| peer.connection.is_some());
            connected.count() == count - 1
        };
        probe::until("the proxies are a mesh", || {
            site.proxies.iter().all(is_meshed)
        })
        .await?;
        Ok(site)
    }

    pub(crate) fn addresses(&self) -> Result<Vec<SocketAddr>> {
        self.proxies.iter().map(Node::quic_addr).collect()
    }

    /// Every proxy keeps these tunnels.
    pub(crate) fn apply(&self, tunnels: &[Tunnel]) -> Result {
        for proxy in &self.proxies {
            proxy.as_proxy()?.tunnels().apply(tunnels.to_vec());
        }
        Ok(())
    }

    /// How the one tunnel of a proxy is.
    pub(crate) fn state(&self, proxy: usize) -> Result<Option<TunnelState>> {
        let states = self.proxies[proxy].as_proxy()?.tunnels().states();
        ensure!(states.len() <= 1, "{states:?}");
        Ok(states.into_iter().next().map(|(_, state)| state))
    }

    /// Sessions of another cluster, as `proxy<other proxy`.
    pub(crate) fn sessions_of(&self, cluster: &str) -> Vec<String> {
        let mut found = Vec::new();
        for proxy in self.proxies.iter().filter_map(|node| node.as_proxy().ok()) {
            for session in proxy.sessions() {
                if session.agent.as_str() == cluster {
                    let other = session.proxy.as_ref().map_or("?", |name| name.as_str());
                    found.push(format!("{}<{other}", proxy.name()));
                }
            }
        }
        found.sort();
        found
    }

    /// Waits for these sessions of another cluster, and no others.
    pub(crate) async fn until_sessions(&self, cluster: &str, expected: &[&str]) -> Result {
        probe::until(&format!("sessions of {cluster}: {expected:?}"), || {
            self.sessions_of(cluster) == expected
        })
        .await
        .with_context(|| format!("{:?}", self.sessions_of(cluster)))
    }

    /// An agent of this cluster, connected to that proxy alone.
    pub(crate) async fn agent(&self, name: &str, proxy: usize, allow: &[String]) -> Result<Node> {
        let address = self.proxies[proxy].quic_addr()?;
        let mut config = agent_config(&self.pki, name, &[address], allow)?;
        config.connection_count = Some(1);
        let agent = Node::agent(config).await?;
        let connected = agent.0.agent().context("an agent")?.connected();
        probe::until("the agent is connected", || *connected.borrow() == 1).await?;
        Ok(agent)
    }

    pub(crate) fn asked(&self) -> Vec<String> {
        self.asked
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    pub(crate) async fn stop(self) {
        for proxy in self.proxies {
            proxy.stop().await;
        }
    }
}

/// A tunnel resource.
pub(crate) fn tunnel(cluster: &str, addresses: &[SocketAddr], connections: u64) -> Result<Tunnel> {
    let draft = Draft {
        cluster: cluster.to_owned(),
        addresses: addresses.iter().map(ToString::to_string).collect(),
        connections,
        ..Draft::default()
    };
    Ok(draft.check()?)
}

/// Dials through a proxy, and has bytes come back; or the reason of the refusal, with its text.
pub(crate) async fn dial(
    proxy: &Node,
    agent: &str,
    target: &str,
) -> Result<std::result::Result<(), (Reason, String)>> {
    match proxy.as_proxy()?.dialer(agent)?.dial(target).await {
        Ok(stream) => echoes(stream).await.map(Ok),
        Err(DialerError::Dial(error)) => Ok(Err((error.reason, error.message))),
        Err(DialerError::Target(error)) => Err(error.into()),
    }
}

/// Sends bytes and an end, and has all of it come back.
pub(crate) async fn echoes(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> Result {
    let bytes = pattern(0, 100_000);
    let (mut read, mut write) = tokio::io::split(&mut stream);
    let mut back = Vec::new();
    let (sent, received) = tokio::join!(
        async {
            write.write_all(&bytes).await?;
            write.shutdown().await
        },
        read.read_to_end(&mut back)
    );
    sent?;
    received?;
    ensure!(
        back == bytes,
        "{} of {} bytes came back",
        back.len(),
        bytes.len()
    );
    Ok(())
}

/// One more exchange on a stream that goes on.
pub(crate) async fn ping(stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> Result {
    stream.write_all(b"ping").await?;
    let mut back = [0; 4];
    stream.read_exact(&mut back).await?;
    ensure!(&back == b"ping");
    Ok(())
}
