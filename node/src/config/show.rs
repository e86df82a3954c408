//! The effective configuration in the shape of a file.

use std::path::Path;

use mesh_proto::grant::Grant;

use super::file::{
    AdminAuthShape, AdminShape, AgentShape, GrantShape, IngressAuthShape, IngressShape,
    IngressTlsShape, LogShape, MetricsShape, Number, ProxyShape, QuicShape, ServiceShape, Shape,
    Size, StoreShape, Switch, Text, Texts, Time, TlsShape, TrustShape,
};
use super::load::{Origins, Role};
use super::model::{
    AdminListen, AgentConfig, CommonConfig, Congestion, DuplicateNames, IngressConfig, IngressKind,
    LogFormat, NodeConfig, ProxyConfig, QuicConfig, TrustConfig,
};
use super::units::{format_duration, format_size};
use crate::store::StoreUrl;

/// What `config` says, as a file. Secrets are not in the model as paths, so that `written`, what
/// the layers said, gives these.
pub(super) fn effective(config: &NodeConfig, written: &Shape, origins: &Origins) -> Shape {
    let paths = Paths { origins };
    let common = config.common();
    let mut shape = common_shape(common, written, &paths);
    match config {
        NodeConfig::Proxy(proxy) => {
            shape.role = text(&Role::Proxy);
            shape.proxy = Some(proxy_shape(proxy, written, &paths));
            shape.ingress = Some(
                proxy
                    .ingresses
                    .iter()
                    .enumerate()
                    .map(|(index, ingress)| ingress_shape(index, ingress, written, &paths))
                    .collect(),
            );
            shape.grant = Some(proxy.grants.iter().map(grant_shape).collect());
            // A password in it is masked.
            shape.store = proxy.store.as_ref().map(|url| StoreShape {
                url: text(&absolute(url)),
            });
            shape.trust = Some(
                proxy
                    .trust
                    .iter()
                    .enumerate()
                    .map(|(index, trust)| trust_shape(index, trust, written, &paths))
                    .collect(),
            );
        }
        NodeConfig::Agent(agent) => {
            shape.role = text(&Role::Agent);
            // What an agent only dials has no address to listen on.
            if let Some(quic) = &mut shape.quic {
                (quic.listen, quic.advertise, quic.peer_advertise) = (None, None, None);
            }
            shape.agent = Some(agent_shape(agent));
            shape.service = Some(
                agent
                    .services
                    .iter()
                    .map(|service| ServiceShape {
                        name: text(&service.name),
                        address: text(&service.address),
                        protocol: text(&service.protocol),
                    })
                    .collect(),
            );
        }
    }
    shape
}

fn common_shape(common: &CommonConfig, written: &Shape, paths: &Paths<'_>) -> Shape {
    let tls = written.tls.as_ref().map(|tls| TlsShape {
        ca: paths.absolute("tls.ca", tls.ca.as_ref()),
        cert: paths.absolute("tls.cert", tls.cert.as_ref()),
        key: paths.absolute("tls.key", tls.key.as_ref()),
    });
    let admin = common.admin.as_ref().map(|admin| AdminShape {
        listen: match &admin.listen {
            AdminListen::Tcp(address) => text(address),
            AdminListen::Unix(path) => text(&format!("unix:{}", path.display())),
        },
        auth: written
            .admin
            .as_ref()
            .and_then(|admin| admin.auth.as_ref())
            .map(|auth| AdminAuthShape {
                tokens_file: paths.absolute("admin.auth.tokens_file", auth.tokens_file.as_ref()),
            }),
    });
    Shape {
        name: text(&common.name),
        cluster: text(&common.cluster),
        tls,
        quic: Some(quic_shape(&common.quic)),
        log: Some(LogShape {
            level: text(&common.log.filter),
            format: text(match common.log.format {
                LogFormat::Text => "text",
                LogFormat::Json => "json",
            }),
        }),
        metrics: common.metrics.as_ref().map(|metrics| MetricsShape {
            listen: text(&metrics.listen),
        }),
        admin,
        ..Shape::default()
    }
}

fn quic_shape(quic: &QuicConfig) -> QuicShape {
    QuicShape {
        listen: text(&quic.listen),
        advertise: (!quic.advertise.is_empty()).then(|| Texts(quic.advertise.clone())),
        peer_advertise: quic.peer_advertise.as_ref().and_then(text),
        stream_window: size(quic.stream_window_bytes.into()),
        stalled_streams_max: number(quic.stalled_streams_max),
        streams_max: number(quic.streams_max),
        buffer_bytes_max: size(quic.buffer_bytes_max),
        keepalive: time(quic.keepalive),
        idle_timeout: time(quic.idle_timeout),
        handshake_timeout: time(quic.handshake_timeout),
        handshakes_per_second: number(quic.handshakes_per_second),
        connections_max: number(quic.connections_max),
        mtu_max: number(quic.mtu_max),
        congestion: text(match quic.congestion {
            Congestion::Tolerant => "tolerant",
            Congestion::Cubic => "cubic",
            Congestion::Bbr => "bbr",
        }),
        shards: number(quic.shards),
    }
}

fn proxy_shape(proxy: &ProxyConfig, written: &Shape, paths: &Paths<'_>) -> ProxyShape {
    let section = written.proxy.as_ref();
    ProxyShape {
        group: text(&proxy.group),
        generation: i64::try_from(proxy.generation.0).ok().map(Number),
        peers: (!proxy.peers.is_empty()).then(|| Texts(proxy.peers.clone())),
        join_deadline: time(proxy.join_deadline),
        drain_notice: time(proxy.drain_notice),
        drain_deadline: time(proxy.common.drain_deadline),
        dial_deadline: time(proxy.dial_deadline),
        reconnects_per_second: number(proxy.reconnects_per_second),
        agent_connection_count: proxy.agent_connection_count.and_then(number),
        duplicate_names: text(&match proxy.duplicate_names {
            DuplicateNames::Newest => "newest",
            DuplicateNames::Refuse => "refuse",
        }),
        expected_agents_file: paths.absolute(
            "proxy.expected_agents_file",
            section.and_then(|section| section.expected_agents_file.as_ref()),
        ),
        state_dir: paths.absolute(
            "proxy.state_dir",
            section.and_then(|section| section.state_dir.as_ref()),
        ),
        allow: texts(&proxy.allow.0),
    }
}

fn ingress_shape(
    index: usize,
    ingress: &IngressConfig,
    written: &Shape,
    paths: &Paths<'_>,
) -> IngressShape {
    let entry = written
        .ingress
        .as_ref()
        .and_then(|entries| entries.get(index));
    let at = |name: &str| format!("ingress[{index}].{name}");
    let (kind, agent, target) = match &ingress.kind {
        IngressKind::Http { .. } => ("http", None, None),
        IngressKind::Tcp { agent, target } => ("tcp", text(agent), text(target)),
    };
    IngressShape {
        kind: text(kind),
        listen: text(&ingress.listen),
        open: entry
            .and_then(|entry| entry.open)
            .filter(|open| *open == Switch(true)),
        hosts: (!ingress.hosts.is_empty()).then(|| Texts(ingress.hosts.clone())),
        connections_max: number(ingress.connections_max),
        upstream_ca: paths.absolute(
            &at("upstream_ca"),
            entry.and_then(|entry| entry.upstream_ca.as_ref()),
        ),
        agent,
        target,
        tls: entry
            .and_then(|entry| entry.tls.as_ref())
            .map(|tls| IngressTlsShape {
                cert: paths.absolute(&at("tls.cert"), tls.cert.as_ref()),
                key: paths.absolute(&at("tls.key"), tls.key.as_ref()),
            }),
        auth: entry
            .and_then(|entry| entry.auth.as_ref())
            .map(|auth| IngressAuthShape {
                tokens_file: paths.absolute(&at("auth.tokens_file"), auth.tokens_file.as_ref()),
                client_ca: paths.absolute(&at("auth.client_ca"), auth.client_ca.as_ref()),
            }),
    }
}

fn grant_shape(grant: &Grant) -> GrantShape {
    GrantShape {
        who: texts(&grant.who),
        may: texts(&grant.may),
        agents: grant.agents.as_ref().and_then(texts),
        targets: grant.targets.as_ref().and_then(texts),
    }
}

fn trust_shape(
    index: usize,
    trust: &TrustConfig,
    written: &Shape,
    paths: &Paths<'_>,
) -> TrustShape {
    let entry = written.trust.as_ref().and_then(|all| all.get(index));
    TrustShape {
        cluster: text(&trust.cluster),
        ca: paths.absolute(
            &format!("trust[{index}].ca"),
            entry.and_then(|entry| entry.ca.as_ref()),
        ),
        allow: texts(&trust.allow.0),
    }
}

fn agent_shape(agent: &AgentConfig) -> AgentShape {
    AgentShape {
        proxies: Some(Texts(agent.proxies.clone())),
        connection_count: agent.connection_count.and_then(number),
        allow: Some(Texts(
            agent.allow.0.iter().map(ToString::to_string).collect(),
        )),
        drain_deadline: time(agent.common.drain_deadline),
    }
}

/// Paths as they were written, made absolute, so that the output can be loaded from anywhere.
struct Paths<'a> {
    origins: &'a Origins,
}

impl Paths<'_> {
    fn absolute(&self, key: &str, written: Option<&Text>) -> Option<Text> {
        let path = self.origins.resolve(key, &written?.0);
        let path = std::path::absolute(&path).unwrap_or(path);
        Some(Text(Path::display(&path).to_string()))
    }
}

/// A store, so that it is found from anywhere.
fn absolute(url: &StoreUrl) -> StoreUrl {
    match url {
        StoreUrl::Redb(path) => {
            StoreUrl::Redb(std::path::absolute(path).unwrap_or_else(|_| path.clone()))
        }
        StoreUrl::Etcd(url) => StoreUrl::Etcd(url.clone()),
    }
}

#[expect(clippy::unnecessary_wraps, reason = "every key of a shape is optional")]
fn text(value: &(impl ToString + ?Sized)) -> Option<Text> {
    Some(Text(value.to_string()))
}

#[expect(clippy::unnecessary_wraps, reason = "every key of a shape is optional")]
fn texts<T: ToString>(values: impl IntoIterator<Item = T>) -> Option<Texts> {
    Some(Texts(
        values.into_iter().map(|value| value.to_string()).collect(),
    ))
}

fn number(value: impl Into<u32>) -> Option<Number> {
    Some(Number(value.into().into()))
}

fn size(bytes: u64) -> Option<Size> {
    Some(Size(format_size(bytes)))
}

fn time(duration: std::time::Duration) -> Option<Time> {
    Some(Time(format_duration(duration)))
}
