//! `[[ingress]]`: where users arrive, and who may.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use certs::{Inspection, PEM_BYTES_MAX, format_utc};
use mesh_proto::name::{AgentRef, InvalidName};
use mesh_proto::target::{HostName, InvalidTarget, Target};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;

use super::checker::Checker;
use super::credentials::{expiry, private};
use super::{Listeners, is_loopback};
use crate::config::errors::quoted;
use crate::config::file::{IngressAuthShape, IngressShape, IngressTlsShape, Switch, Texts};
use crate::config::model::{IngressAuth, IngressConfig, IngressKind, IngressTls};
use crate::config::secret::{TOKENS_FILE_BYTES_MAX, TokenTable};

/// The most host names of an ingress.
const HOSTS_MAX: usize = 256;

/// The most certificates of one file.
const CERTIFICATES_MAX: usize = 512;

/// What an ingress speaks, before its keys are looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Http,
    Tcp,
}

/// The ingress at `index`; `None` after errors.
pub(super) fn ingress(
    check: &mut Checker<'_>,
    index: usize,
    shape: &IngressShape,
    listeners: &mut Listeners,
) -> Option<IngressConfig> {
    let at = |name: &str| format!("ingress[{index}].{name}");
    let kind = kind(check, &at("kind"), shape);
    let listen = check
        .required(
            &at("listen"),
            shape.listen.as_ref(),
            "write listen = \"127.0.0.1:8123\"",
        )
        .and_then(|text| check.listen_address(&at("listen"), text));
    if let Some(listen) = listen {
        listeners.add(at("listen"), listen);
    }
    let connections_max = check.number(
        &at("connections_max"),
        shape.connections_max,
        1..=1_000_000,
        4096,
        "connections of users beyond it wait to be accepted",
    );
    let tls = match &shape.tls {
        None => Some(None),
        Some(tls) => self::tls(check, &at("tls"), tls).map(Some),
    };
    let auth = auth(check, &at, shape, kind, listen);
    let hosts = match &shape.hosts {
        None => Some(Vec::new()),
        Some(texts) => hosts(check, &at("hosts"), texts),
    };
    let kind = kind.and_then(|kind| match kind {
        Kind::Http => http(check, &at, shape),
        Kind::Tcp => tcp(check, &at, shape),
    });
    Some(IngressConfig {
        listen: listen?,
        tls: tls?,
        auth: auth?,
        hosts: hosts?,
        connections_max: connections_max?,
        kind: kind?,
    })
}

fn kind(check: &mut Checker<'_>, key: &str, shape: &IngressShape) -> Option<Kind> {
    let text = check.required(
        key,
        shape.kind.as_ref(),
        "write kind = \"http\" or kind = \"tcp\"",
    )?;
    if matches!(text, "connect" | "socks5") {
        check.error(
            key,
            format!("{} is not supported by this version of node", quoted(text)),
            "use \"http\" or \"tcp\"",
        );
        return None;
    }
    check.word(key, text, &[("http", Kind::Http), ("tcp", Kind::Tcp)])
}

fn http(
    check: &mut Checker<'_>,
    at: &dyn Fn(&str) -> String,
    shape: &IngressShape,
) -> Option<IngressKind> {
    let mut foreign = false;
    for (name, present) in [
        ("agent", shape.agent.is_some()),
        ("target", shape.target.is_some()),
    ] {
        if present {
            foreign = true;
            check.error(
                &at(name),
                "is for kind \"tcp\", and this ingress is of kind \"http\"",
                "remove it: a user's request names agent and target",
            );
        }
    }
    let upstream_ca = match &shape.upstream_ca {
        None => Some(None),
        Some(text) => certificates(check, &at("upstream_ca"), &text.0)
            .map(|(_, certificates)| Some(certificates)),
    };
    if foreign {
        None
    } else {
        Some(IngressKind::Http {
            upstream_ca: upstream_ca?,
        })
    }
}

fn tcp(
    check: &mut Checker<'_>,
    at: &dyn Fn(&str) -> String,
    shape: &IngressShape,
) -> Option<IngressKind> {
    let mut foreign = false;
    for (name, present) in [
        ("hosts", shape.hosts.is_some()),
        ("upstream_ca", shape.upstream_ca.is_some()),
    ] {
        if present {
            foreign = true;
            check.error(
                &at(name),
                "is for kind \"http\", and this ingress is of kind \"tcp\"",
                "remove it: the bytes are not looked into",
            );
        }
    }
    let agent: Option<AgentRef> = check
        .required(
            &at("agent"),
            shape.agent.as_ref(),
            "write agent = \"a1\", the agent that this port leads to",
        )
        .and_then(|text| {
            check.parse(&at("agent"), text, "an agent", |error: InvalidName| {
                error.rule
            })
        });
    let target: Option<Target> = check
        .required(&at("target"), shape.target.as_ref(), "write target = \"127.0.0.1:5432\" or \"service:db\", what the agent connects this port to")
        .and_then(|text| check.parse(&at("target"), text, "a target", |error: InvalidTarget| error.rule));
    if foreign {
        None
    } else {
        Some(IngressKind::Tcp {
            agent: agent?,
            target: target?,
        })
    }
}

/// Who may use the ingress. On an address that others can reach, that must be said.
fn auth(
    check: &mut Checker<'_>,
    at: &dyn Fn(&str) -> String,
    shape: &IngressShape,
    kind: Option<Kind>,
    listen: Option<SocketAddr>,
) -> Option<IngressAuth> {
    let open = shape.open == Some(Switch(true));
    let exposed = listen.filter(|listen| !is_loopback(*listen));
    let Some(auth) = &shape.auth else {
        if let Some(listen) = exposed {
            if !open {
                let ways = match kind {
                    Some(Kind::Tcp) => "auth = { client_ca = \"…\" } with tls",
                    Some(Kind::Http) | None => {
                        "auth = { tokens_file = \"…\" } or auth = { client_ca = \"…\" }"
                    }
                };
                check.error(
                    &at("listen"),
                    format!(
                        "{listen} can be reached from other hosts, and nothing says who may use it"
                    ),
                    format!("add {ways}, or open = true to let everybody in"),
                );
                return None;
            }
            if shape.tls.is_none() {
                check.warn(&at("open"), &format!("everybody who reaches {listen} may use it, and in the clear: add auth and tls unless that is meant"));
            }
        }
        return Some(IngressAuth::Open);
    };
    if open {
        check.error(&at("open"), "contradicts auth", "remove one of the two");
        return None;
    }
    let IngressAuthShape {
        tokens_file,
        client_ca,
    } = auth;
    match (tokens_file, client_ca) {
        (Some(_), Some(_)) => {
            check.error(
                &at("auth"),
                "names both tokens_file and client_ca",
                "remove one of the two",
            );
            None
        }
        (None, None) => {
            check.missing(
                &at("auth.tokens_file"),
                "write auth = { tokens_file = \"…\" } or auth = { client_ca = \"…\" }",
            );
            None
        }
        (Some(_), None) if kind == Some(Kind::Tcp) => {
            check.error(
                &at("auth.tokens_file"),
                "cannot work for kind \"tcp\": a raw port carries no token",
                "use client_ca with tls, or open = true",
            );
            None
        }
        (Some(text), None) => {
            let table = tokens(check, &at("auth.tokens_file"), &text.0)?;
            if let Some(listen) = exposed
                && shape.tls.is_none()
            {
                check.warn(
                    &at("auth.tokens_file"),
                    &format!("tokens cross the network to {listen} in the clear: add tls"),
                );
            }
            Some(IngressAuth::Tokens(table))
        }
        (None, Some(text)) => {
            let read = certificates(check, &at("auth.client_ca"), &text.0);
            if shape.tls.is_none() {
                check.error(
                    &at("auth.client_ca"),
                    "needs tls: a client shows its certificate during the TLS handshake",
                    "add tls = { cert = \"…\", key = \"…\" }",
                );
                return None;
            }
            read.map(|(_, certificates)| IngressAuth::ClientCa(certificates))
        }
    }
}

/// The tokens in the file that `key` names.
pub(super) fn tokens(check: &mut Checker<'_>, key: &str, text: &str) -> Option<Arc<TokenTable>> {
    let (path, bytes) = check.read(
        key,
        text,
        u64::try_from(TOKENS_FILE_BYTES_MAX).unwrap_or(u64::MAX),
    )?;
    private(check, key, &path);
    let Ok(text) = String::from_utf8(bytes) else {
        check.error(
            key,
            format!("{} is not text", path.display()),
            "write a `name:token` a line",
        );
        return None;
    };
    match TokenTable::from_text(&text) {
        Ok(table) => Some(Arc::new(table)),
        Err(errors) => {
            for fault in errors.faults() {
                check.error(
                    key,
                    format!("{}:{}: {}", path.display(), fault.line, fault.what),
                    fault.remedy.clone(),
                );
            }
            None
        }
    }
}

/// The names under which an ingress is served, lower-cased.
fn hosts(check: &mut Checker<'_>, key: &str, Texts(texts): &Texts) -> Option<Vec<String>> {
    if texts.len() > HOSTS_MAX {
        check.error(
            key,
            format!("has {} entries, over the limit of {HOSTS_MAX}", texts.len()),
            "leave hosts out to serve any name",
        );
        return None;
    }
    let mut hosts = Vec::with_capacity(texts.len());
    for (index, text) in texts.iter().enumerate() {
        let bare = text
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'))
            .unwrap_or(text);
        if let Ok(address) = bare.parse::<IpAddr>() {
            hosts.push(address.to_string());
        } else if let Ok(name) = text.parse::<HostName>() {
            hosts.push(name.to_string());
        } else {
            check.error(
                &format!("{key}[{index}]"),
                format!("{} is not a host name", quoted(text)),
                "write a DNS name or an IP address without a port, as in \"mesh.example.com\"",
            );
        }
    }
    (hosts.len() == texts.len()).then_some(hosts)
}

/// The ingress' own certificate and key.
fn tls(check: &mut Checker<'_>, key: &str, shape: &IngressTlsShape) -> Option<IngressTls> {
    let cert_key = format!("{key}.cert");
    let key_key = format!("{key}.key");
    let cert = check.required(
        &cert_key,
        shape.cert.as_ref(),
        "write tls = { cert = \"…\", key = \"…\" }",
    );
    let private_key = check.required(
        &key_key,
        shape.key.as_ref(),
        "write tls = { cert = \"…\", key = \"…\" }",
    );
    let cert = cert.and_then(|text| certificates(check, &cert_key, text));
    let private_key = private_key.and_then(|text| self::private_key(check, &key_key, text));
    let ((cert_path, chain), (key_path, private_key)) = (cert?, private_key?);

    let inspected = match chain.first().map(Inspection::of) {
        Some(Ok(inspected)) => inspected,
        Some(Err(_)) | None => {
            check.error(
                &cert_key,
                format!("{} cannot be used as a certificate", cert_path.display()),
                "check which file it names",
            );
            return None;
        }
    };
    if inspected.not_after < check.now {
        check.error(
            &cert_key,
            format!(
                "{} expired at {}",
                cert_path.display(),
                format_utc(inspected.not_after)
            ),
            "renew it, or check this host's clock",
        );
        return None;
    }
    let signing = match certs::provider()
        .key_provider
        .load_private_key(private_key.clone_key())
    {
        Ok(signing) => signing,
        Err(error) => {
            check.error(
                &key_key,
                format!("{} cannot be used: {error}", key_path.display()),
                "use a key of RSA, ECDSA or Ed25519 in PKCS#8",
            );
            return None;
        }
    };
    if let Err(error) = CertifiedKey::new(chain.clone(), signing).keys_match() {
        let of_another = matches!(error, rustls::Error::InconsistentKeys(_));
        let (key, what) = if of_another {
            (
                &key_key,
                format!(
                    "{} does not fit the certificate in {}",
                    key_path.display(),
                    cert_path.display()
                ),
            )
        } else {
            (
                &cert_key,
                format!("{} cannot be used: {error}", cert_path.display()),
            )
        };
        check.error(key, what, "name a certificate and its own key");
        return None;
    }
    expiry(check, &cert_key, inspected.not_after, "renew it in time");
    Some(IngressTls {
        chain,
        key: Arc::new(private_key),
        not_after: inspected.not_after,
    })
}

/// The certificates in the file that `key` names, at least one.
fn certificates(
    check: &mut Checker<'_>,
    key: &str,
    text: &str,
) -> Option<(std::path::PathBuf, Vec<CertificateDer<'static>>)> {
    let (path, bytes) = check.read(key, text, PEM_BYTES_MAX)?;
    let mut certificates = Vec::new();
    for certificate in CertificateDer::pem_slice_iter(&bytes) {
        match certificate {
            Ok(certificate) if Inspection::of(&certificate).is_ok() => {
                certificates.push(certificate);
            }
            Ok(_) => return no_certificates(check, key, &path, "it holds one that is damaged"),
            Err(error) => return no_certificates(check, key, &path, &error.to_string()),
        }
        if certificates.len() > CERTIFICATES_MAX {
            return no_certificates(
                check,
                key,
                &path,
                &format!("there are more than {CERTIFICATES_MAX}"),
            );
        }
    }
    if certificates.is_empty() {
        return no_certificates(check, key, &path, "there is none in it");
    }
    Some((path, certificates))
}

fn no_certificates<T>(check: &mut Checker<'_>, key: &str, path: &Path, why: &str) -> Option<T> {
    check.error(
        key,
        format!("{} cannot be read as certificates: {why}", path.display()),
        "name a PEM file with BEGIN CERTIFICATE in it",
    );
    None
}

fn private_key(
    check: &mut Checker<'_>,
    key: &str,
    text: &str,
) -> Option<(std::path::PathBuf, PrivateKeyDer<'static>)> {
    let (path, bytes) = check.read(key, text, PEM_BYTES_MAX)?;
    private(check, key, &path);
    match PrivateKeyDer::from_pem_slice(&bytes) {
        Ok(private_key) => Some((path, private_key)),
        Err(_) => {
            check.error(
                key,
                format!("{} holds no private key", path.display()),
                "name a PEM file with BEGIN PRIVATE KEY in it, not encrypted",
            );
            None
        }
    }
}
