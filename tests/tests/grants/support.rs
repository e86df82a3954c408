//! A proxy with grants, and agents that serve an echo each.

use anyhow::{Context as _, bail, ensure};
use certs::Kind;
use mesh_proto::grant::{Grant, May};
use mesh_proto::refusal::Reason;
use mesh_proto::target::Target;
use mesh_proto::wire::{ALPN_USER, Dial, Open};
use mesh_tests::fleet::{Node, agent_config, proxy_config, service};
use mesh_tests::pki::Pki;
use mesh_tests::quic::{self, Raw};
use mesh_tests::services::Service;
use mesh_tests::{Result, probe};
use node::agent::{DialRefused, DialerError};
use node::config::ProxyConfig;
use node::quic::TunnelStream;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

pub(crate) const CLUSTER: &str = "test.example.com";

/// A grant to dial, as a config has it; no agents or targets: left out.
pub(crate) fn grant(who: &[&str], agents: &[&str], targets: &[&str]) -> Result<Grant> {
    fn all<T: std::str::FromStr<Err = E>, E: std::error::Error + Send + Sync + 'static>(
        texts: &[&str],
    ) -> Result<Vec<T>> {
        texts.iter().map(|text| Ok(text.parse()?)).collect()
    }
    let some = |texts: &[&str]| !texts.is_empty();
    Ok(Grant {
        who: all(who)?,
        may: [May::Dial].into(),
        agents: some(agents).then(|| all(agents)).transpose()?,
        targets: some(targets).then(|| all(targets)).transpose()?,
    })
}

/// A proxy and agents, each with an echo that is its service `echo`.
pub(crate) struct Mesh {
    pub(crate) pki: Pki,
    pub(crate) proxy: Node,
    pub(crate) agents: Vec<Node>,
    pub(crate) echoes: Vec<Service>,
}

impl Mesh {
    /// Starts all; everybody is connected afterwards.
    pub(crate) async fn start(grants: Vec<Grant>, agents: &[&str]) -> Result<Self> {
        Self::start_with(agents, |config| config.grants = grants).await
    }

    /// As [`Mesh::start`]; the closure may change the proxy's config.
    pub(crate) async fn start_with(
        names: &[&str],
        change: impl FnOnce(&mut ProxyConfig),
    ) -> Result<Self> {
        let pki = Pki::new(CLUSTER)?;
        let mut config = proxy_config(&pki, "proxy-1")?;
        change(&mut config);
        let proxy = Node::proxy(config).await?;
        let (mut agents, mut echoes) = (Vec::new(), Vec::new());
        for name in names {
            let echo = Service::echo().await?;
            let mut config = agent_config(&pki, name, &[proxy.quic_addr()?], &[echo.rule()])?;
            config.services = vec![service("echo", echo.addr)?];
            agents.push(Node::agent(config).await?);
            echoes.push(echo);
        }
        proxy.sessions(names.len()).await?;
        let mesh = Self {
            pki,
            proxy,
            agents,
            echoes,
        };
        // The proxy knows of a session before its agent does.
        for index in 0..names.len() {
            let connected = mesh.agent(index)?.connected();
            probe::until("the agent is connected", || *connected.borrow() == 1).await?;
        }
        Ok(mesh)
    }

    pub(crate) fn agent(&self, index: usize) -> Result<&node::Agent> {
        self.agents[index].0.agent().context("not an agent")
    }

    /// A dial of one agent.
    pub(crate) async fn dial(
        &self,
        from: usize,
        to: &str,
        target: &str,
    ) -> Result<std::result::Result<TunnelStream, DialRefused>> {
        match self.agent(from)?.dialer(to)?.dial(target).await {
            Ok(stream) => Ok(Ok(stream)),
            Err(DialerError::Refused(refused)) => Ok(Err(refused)),
            Err(other) => bail!("{other}"),
        }
    }

    /// A user's own connection to the proxy.
    pub(crate) async fn user(&self, name: &str) -> Result<Raw> {
        let credentials = self.pki.issue(Kind::User, name)?;
        quic::connect(self.proxy.quic_addr()?, &credentials, ALPN_USER).await
    }

    /// Dials that an agent was asked for.
    pub(crate) fn asked(&self, agent: usize) -> Result<f64> {
        Ok(self.agents[agent].metrics()?.sum("mesh_agent_dials_total"))
    }

    /// All streams have ended, on every node, and then the nodes.
    pub(crate) async fn stop(self) -> Result {
        for node in self.agents.iter().chain([&self.proxy]) {
            probe::eventually("all streams have ended", || async {
                let open = node.metrics()?.get("mesh_streams_open")?;
                ensure!(open.to_bits() == 0f64.to_bits(), "{open} are open");
                Ok(())
            })
            .await?;
        }
        for agent in self.agents {
            ensure!(agent.stop().await == 0);
        }
        ensure!(self.proxy.stop().await == 0);
        Ok(())
    }
}

/// What was refused, and what people are told.
pub(crate) fn refused(
    dialled: std::result::Result<TunnelStream, DialRefused>,
) -> Result<(Reason, String)> {
    match dialled {
        Ok(_) => bail!("the dial went through"),
        Err(refused) => Ok((refused.reason, refused.message)),
    }
}

/// A dial as it is sent, with a principal that is a lie.
pub(crate) fn dial_frame(agent: &str, target: &str, principal: &str) -> Result<Open> {
    let target: Target = target.parse()?;
    Ok(Open::Dial(Dial {
        target,
        agent: agent.parse()?,
        principal: principal.parse()?,
        hops_left: 0,
        deadline_ms: 30_000,
        trace: None,
        ext: Vec::new(),
    }))
}

/// Sends `bytes` to an echo in small and large pieces while it reads them back, to the end.
pub(crate) async fn echoed(
    mut read: impl AsyncRead + Unpin,
    mut write: impl AsyncWrite + Unpin,
    bytes: &[u8],
) -> Result {
    let sent = async {
        for piece in bytes.chunks(70_001) {
            write.write_all(piece).await?;
        }
        write.shutdown().await?;
        anyhow::Ok(())
    };
    let back = async {
        let mut back = Vec::new();
        read.read_to_end(&mut back).await?;
        anyhow::Ok(back)
    };
    let ((), back) = tokio::try_join!(sent, back)?;
    let at = back.iter().zip(bytes).take_while(|(a, b)| a == b).count();
    ensure!(
        back == bytes,
        "{} of {} bytes came back, {at} of them right",
        back.len(),
        bytes.len()
    );
    Ok(())
}
