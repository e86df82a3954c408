//! From the shape to the model: what every value must be, and the rules between keys.

mod agent;
mod checker;
mod credentials;
mod grants;
mod ingress;
mod proxy;
mod quic;
mod store;
mod trust;

use std::net::SocketAddr;
use std::sync::Arc;

use mesh_proto::name::InvalidName;
use tracing_subscriber::EnvFilter;

use self::checker::Checker;
use super::errors::{ConfigError, ConfigErrors, Place, nearest, quoted};
use super::file::{AdminShape, LogShape, MetricsShape, Shape};
use super::load::{Origins, Role};
use super::model::{
    AdminConfig, AdminListen, CommonConfig, IngressAuth, LogConfig, LogFormat, MetricsConfig,
    NodeConfig,
};
use super::tree::Report;

pub(super) use self::checker::read_bounded;

/// What remains to be built when everything is in order.
pub(super) struct Checked {
    pub(super) config: NodeConfig,
    pub(super) warnings: Vec<String>,
    pub(super) shape: Shape,
}

/// Checks everything, at `now` in Unix seconds. `report` says what the layers found already.
pub(super) fn validate(
    shape: Shape,
    origins: &Origins,
    report: Report,
    now: i64,
) -> Result<Checked, ConfigErrors> {
    let mut check = Checker::new(origins, report, now);
    let config = node(&mut check, &shape);
    let (errors, warnings) = check.finish();
    match (ConfigErrors::new(errors), config) {
        (None, Some(config)) => Ok(Checked {
            config,
            warnings,
            shape,
        }),
        (Some(errors), _) => Err(errors),
        // Every `None` comes with an error; should one ever lack it, this is not a success.
        (None, None) => Err(ConfigErrors::of(ConfigError {
            place: Place::Nowhere,
            key: String::new(),
            what: "the configuration is not complete".into(),
            remedy: "compare it with docs/CONFIG.md".into(),
        })),
    }
}

fn node(check: &mut Checker<'_>, shape: &Shape) -> Option<NodeConfig> {
    let role = role(check, shape);
    let (listeners, own_listeners) = (&mut Listeners::default(), &mut Listeners::default());
    let common = common(check, shape, role, own_listeners);
    if role.is_none() {
        // The rest is checked all the same, for what is wrong in any role.
        check.nothing_is_missing();
    }
    let of_proxy = [
        ("proxy", "[proxy]", shape.proxy.is_some()),
        ("ingress", "[[ingress]]", shape.ingress.is_some()),
        ("grant", "[[grant]]", shape.grant.is_some()),
        ("store", "[store]", shape.store.is_some()),
        ("trust", "[[trust]]", shape.trust.is_some()),
    ];
    let of_agent = [
        ("agent", "[agent]", shape.agent.is_some()),
        ("service", "[[service]]", shape.service.is_some()),
    ];
    let present = |sections: &[(&str, &str, bool)]| sections.iter().any(|(_, _, is)| *is);
    let (for_proxy, for_agent) = match role {
        Some(role @ Role::Proxy) => {
            foreign(check, &of_agent, Role::Agent, role);
            (true, false)
        }
        Some(role @ Role::Agent) => {
            foreign(check, &of_proxy, Role::Proxy, role);
            (false, true)
        }
        None => (present(&of_proxy), present(&of_agent)),
    };
    let own = common.as_ref().map(|common| common.credentials.clone());
    let proxy = for_proxy
        .then(|| proxy::proxy(check, shape, own.as_deref(), listeners))
        .flatten();
    let agent = for_agent.then(|| agent::agent(check, shape)).flatten();
    listeners.0.append(&mut own_listeners.0);
    listeners.check(check);
    match role? {
        Role::Proxy => Some(NodeConfig::Proxy(Box::new(proxy?.with(common?)))),
        Role::Agent => Some(NodeConfig::Agent(Box::new(agent?.with(common?)))),
    }
}

fn role(check: &mut Checker<'_>, shape: &Shape) -> Option<Role> {
    let text = check.required(
        "role",
        shape.role.as_ref(),
        "write role = \"proxy\" or role = \"agent\", or start with --role",
    )?;
    check.word(
        "role",
        text,
        &[("proxy", Role::Proxy), ("agent", Role::Agent)],
    )
}

/// Sections of the other role are errors, since they would have no effect.
fn foreign(check: &mut Checker<'_>, sections: &[(&str, &str, bool)], of: Role, role: Role) {
    for (key, section, present) in sections {
        if *present {
            check.error(
                key,
                format!("{section} is for role {of}, and this node's role is {role}"),
                "remove the section, or correct the role",
            );
        }
    }
}

fn common(
    check: &mut Checker<'_>,
    shape: &Shape,
    role: Option<Role>,
    listeners: &mut Listeners,
) -> Option<CommonConfig> {
    let credentials = credentials::credentials(check, shape.tls.as_ref(), role);
    let identity = credentials
        .as_ref()
        .map(|credentials| credentials.identity());
    let mut named_rightly = true;
    if let Some(text) = &shape.name {
        let name = check.parse("name", &text.0, "a name", |error: InvalidName| error.rule);
        named_rightly &= same(
            check,
            "name",
            name.as_ref(),
            identity.map(|identity| &identity.name),
        );
    }
    if let Some(text) = &shape.cluster {
        let cluster = check.parse("cluster", &text.0, "a cluster", |error: InvalidName| {
            error.rule
        });
        named_rightly &= same(
            check,
            "cluster",
            cluster.as_ref(),
            identity.map(|identity| &identity.cluster),
        );
    }
    let quic = quic::quic(check, shape.quic.as_ref(), role);
    let log = shape
        .log
        .as_ref()
        .map_or_else(|| Some(LogConfig::default()), |log| self::log(check, log));
    let metrics = shape
        .metrics
        .as_ref()
        .map(|metrics| self::metrics(check, metrics, listeners));
    let admin = shape
        .admin
        .as_ref()
        .map(|admin| self::admin(check, admin, listeners));
    let mut common = CommonConfig::new(Arc::new(credentials?));
    common.quic = quic?;
    common.log = log?;
    // `Some(None)` is a section with an error.
    common.metrics = metrics.map_or(Some(None), |metrics| metrics.map(Some))?;
    common.admin = admin.map_or(Some(None), |admin| admin.map(Some))?;
    named_rightly.then_some(common)
}

/// Whether a name is the certificate's; `None` was reported elsewhere.
fn same<T: PartialEq + std::fmt::Display>(
    check: &mut Checker<'_>,
    key: &str,
    written: Option<&T>,
    certified: Option<&T>,
) -> bool {
    if let (Some(written), Some(certified)) = (written, certified)
        && written != certified
    {
        check.error(
            key,
            format!("\"{written}\" is not what the certificate says, which is \"{certified}\""),
            "correct it or leave it out, or take another certificate (`node certs issue`)",
        );
        return false;
    }
    written.is_some()
}

fn log(check: &mut Checker<'_>, shape: &LogShape) -> Option<LogConfig> {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    let default = LogConfig::default();
    let filter = match &shape.level {
        None => Some(default.filter),
        Some(text) => {
            let filter = text.0.trim();
            let is_level = LEVELS
                .iter()
                .any(|level| level.eq_ignore_ascii_case(filter));
            // A bare word that is no level would be read as a module's name.
            let is_word = filter.chars().all(|c| c.is_ascii_alphabetic());
            let why = match EnvFilter::builder().parse(filter) {
                Ok(_) if is_word && !is_level => Some(match nearest(filter, LEVELS) {
                    Some(meant) => format!("did you mean {meant:?}?"),
                    None => format!(
                        "write one of {}, or a filter as in \"info,node::quic=debug\"",
                        checker::listed(&LEVELS)
                    ),
                }),
                Ok(_) => None,
                Err(error) => Some(format!(
                    "write a level, or a filter as in \"info,node::quic=debug\" ({error})"
                )),
            };
            match why {
                None => Some(filter.to_owned()),
                Some(remedy) => {
                    check.error(
                        "log.level",
                        format!("{} is neither a level nor a filter", quoted(&text.0)),
                        remedy,
                    );
                    None
                }
            }
        }
    };
    let format = match &shape.format {
        None => Some(default.format),
        Some(text) => check.word(
            "log.format",
            &text.0,
            &[("text", LogFormat::Text), ("json", LogFormat::Json)],
        ),
    };
    Some(LogConfig {
        filter: filter?,
        format: format?,
    })
}

fn metrics(
    check: &mut Checker<'_>,
    shape: &MetricsShape,
    listeners: &mut Listeners,
) -> Option<MetricsConfig> {
    let text = check.required(
        "metrics.listen",
        shape.listen.as_ref(),
        "write listen = \"0.0.0.0:7481\", or remove the section",
    )?;
    let listen = check.listen_address("metrics.listen", text)?;
    listeners.add("metrics.listen".into(), listen);
    Some(MetricsConfig { listen })
}

fn admin(
    check: &mut Checker<'_>,
    shape: &AdminShape,
    listeners: &mut Listeners,
) -> Option<AdminConfig> {
    const UNIX_PATH_BYTES_MAX: usize = 107;
    let tokens = shape.auth.as_ref().map(|auth| {
        let file = check.required(
            "admin.auth.tokens_file",
            auth.tokens_file.as_ref(),
            "write auth = { tokens_file = \"…\" }, or remove auth",
        )?;
        ingress::tokens(check, "admin.auth.tokens_file", file)
    });
    let text = check.required(
        "admin.listen",
        shape.listen.as_ref(),
        "write listen = \"127.0.0.1:7480\", or remove the section",
    )?;
    let listen = if let Some(path) = text.strip_prefix("unix:") {
        if !path.starts_with('/') || path.len() > UNIX_PATH_BYTES_MAX || path.contains('\0') {
            check.error(
                "admin.listen",
                format!("{} is not a path for a Unix socket", quoted(path)),
                format!("write unix: and an absolute path of at most {UNIX_PATH_BYTES_MAX} bytes, as in \"unix:/run/mesh/admin.sock\""),
            );
            return None;
        }
        AdminListen::Unix(path.into())
    } else {
        let address = check.listen_address("admin.listen", text)?;
        listeners.add("admin.listen".into(), address);
        if !is_loopback(address) {
            match tokens {
                None => {
                    check.error(
                        "admin.listen",
                        format!("{address} can be reached from other hosts, and there is no admin.auth"),
                        "listen on a loopback address or a Unix socket, or add auth = { tokens_file = \"…\" }",
                    );
                    return None;
                }
                Some(_) => check.warn("admin.listen", "tokens cross the network in the clear: listen on a loopback address or a Unix socket, or put a TLS proxy before it"),
            }
        }
        AdminListen::Tcp(address)
    };
    let auth = match tokens {
        None => IngressAuth::Open,
        Some(tokens) => IngressAuth::Tokens(tokens?),
    };
    Some(AdminConfig { listen, auth })
}

/// The TCP addresses that the node listens on, each with its key.
#[derive(Debug, Default)]
struct Listeners(Vec<(String, SocketAddr)>);

impl Listeners {
    fn add(&mut self, key: String, address: SocketAddr) {
        self.0.push((key, address));
    }

    /// Two listeners cannot share an address.
    fn check(&self, check: &mut Checker<'_>) {
        for (index, (key, address)) in self.0.iter().enumerate() {
            let earlier = self
                .0
                .iter()
                .take(index)
                .find(|(_, other)| overlap(*address, *other));
            if let Some((other_key, other)) = earlier {
                check.error(
                    key,
                    format!("{address} is taken by {other_key} ({other})"),
                    "choose another port for one of them",
                );
            }
        }
    }
}

/// Whether only one of two addresses can be listened on. Port 0 is any free port.
fn overlap(a: SocketAddr, b: SocketAddr) -> bool {
    let same_ip = a.ip() == b.ip()
        || (a.is_ipv4() == b.is_ipv4() && (a.ip().is_unspecified() || b.ip().is_unspecified()));
    a.port() == b.port() && a.port() != 0 && same_ip
}

/// Whether only this host can reach a listener at this address.
fn is_loopback(address: SocketAddr) -> bool {
    address.ip().to_canonical().is_loopback()
}
