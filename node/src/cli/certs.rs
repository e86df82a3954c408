//! `node certs`: create an authority, issue identities, sign requests, show certificates.

#![expect(
    clippy::print_stdout,
    reason = "what was written and what to do next is this verb's output"
)]

use std::fmt::Write as _;
use std::net::IpAddr;
use std::path::PathBuf;

use certs::{
    AUTHORITY_CERT_FILE, AUTHORITY_DAYS, AUTHORITY_KEY_FILE, Authority, AuthorityError, Csr,
    CsrError, DAYS_MAX, Identity, Inspection, KeyKind, Kind, LEAF_DAYS, Request, Subject, Validity,
    format_utc,
};
use clap::{Args, Subcommand, ValueEnum};
use mesh_proto::name::{Cluster, NodeName};
use serde_json::json;

use super::CliError;

/// Arguments of `node certs`.
#[derive(Debug, Args)]
pub struct CertsArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Create a cluster's authority: writes ca.pem and ca.key.
    Init(InitArgs),
    /// Make a key and issue its certificate: writes NAME.pem and NAME.key.
    Issue(IssueArgs),
    /// Show who a certificate is, of which cluster, until when.
    Show(ShowArgs),
    /// Make a key that stays here, and a request to be signed: writes NAME.key and NAME.csr.
    Csr(CsrArgs),
    /// Sign a request: writes NAME.pem.
    Sign(SignArgs),
}

#[derive(Debug, Args)]
struct InitArgs {
    /// The cluster's name, which contains a dot, such as example.com.
    #[arg(long)]
    cluster: String,
    /// Where to write.
    #[arg(long)]
    dir: PathBuf,
    /// How many days the authority is valid.
    #[arg(long, default_value_t = AUTHORITY_DAYS)]
    days: u32,
    /// The kind of its key.
    #[arg(long, value_enum, default_value_t)]
    key: KeyArg,
}

#[derive(Debug, Args)]
struct IssueArgs {
    /// What it is for.
    kind: KindArg,
    /// Its name: one DNS label.
    name: String,
    /// The directory of ca.pem and ca.key, and where to write.
    #[arg(long)]
    dir: PathBuf,
    #[command(flatten)]
    names: AltNameArgs,
    /// How many days the certificate is valid; never longer than the authority.
    #[arg(long, default_value_t = LEAF_DAYS)]
    days: u32,
    /// The kind of its key.
    #[arg(long, value_enum, default_value_t)]
    key: KeyArg,
}

#[derive(Debug, Args)]
struct ShowArgs {
    /// A PEM file with one or more certificates.
    file: PathBuf,
    /// A JSON list instead of text.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct CsrArgs {
    /// What it is for.
    kind: KindArg,
    /// Its name: one DNS label.
    name: String,
    /// The cluster whose authority will sign.
    #[arg(long)]
    cluster: String,
    /// Where to write.
    #[arg(long)]
    dir: PathBuf,
    #[command(flatten)]
    names: AltNameArgs,
    /// The kind of its key.
    #[arg(long, value_enum, default_value_t)]
    key: KeyArg,
}

#[derive(Debug, Args)]
struct SignArgs {
    /// The request, PEM.
    file: PathBuf,
    /// The directory of ca.pem and ca.key, and where to write.
    #[arg(long)]
    dir: PathBuf,
    /// How many days the certificate is valid; never longer than the authority.
    #[arg(long, default_value_t = LEAF_DAYS)]
    days: u32,
}

#[derive(Debug, Args)]
struct AltNameArgs {
    /// A further DNS name; may be given several times. A proxy has proxy.<cluster> anyway.
    #[arg(long = "dns", value_name = "NAME")]
    dns: Vec<String>,
    /// An IP address; may be given several times.
    #[arg(long = "ip", value_name = "ADDRESS")]
    ips: Vec<IpAddr>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum KindArg {
    Proxy,
    Agent,
    User,
}

impl From<KindArg> for Kind {
    fn from(kind: KindArg) -> Self {
        match kind {
            KindArg::Proxy => Self::Proxy,
            KindArg::Agent => Self::Agent,
            KindArg::User => Self::User,
        }
    }
}

#[derive(Debug, Clone, Copy, Default, ValueEnum)]
enum KeyArg {
    #[default]
    Ed25519,
    EcdsaP256,
}

impl From<KeyArg> for KeyKind {
    fn from(key: KeyArg) -> Self {
        match key {
            KeyArg::Ed25519 => Self::Ed25519,
            KeyArg::EcdsaP256 => Self::EcdsaP256,
        }
    }
}

/// Runs `node certs …`.
///
/// # Errors
/// [`CliError::Usage`] when a name, a number of days or a DNS name breaks its rule;
/// [`CliError::Failed`] when a file is missing, exists already or is not what it should be. Nothing
/// has been written then.
pub fn run(args: CertsArgs) -> Result<(), CliError> {
    let text = execute(args)?;
    print!("{text}");
    Ok(())
}

/// Does the work; returns what is to be printed.
fn execute(args: CertsArgs) -> Result<String, CliError> {
    match args.command {
        Command::Init(args) => init(&args),
        Command::Issue(args) => issue(args),
        Command::Show(args) => show(&args),
        Command::Csr(args) => csr(&args),
        Command::Sign(args) => sign(&args),
    }
}

fn init(args: &InitArgs) -> Result<String, CliError> {
    let cluster: Cluster = args.cluster.parse().map_err(usage)?;
    let authority = Authority::create_with(cluster, &validity(args.days)?, args.key.into())
        .map_err(authority_error)?;
    let [cert, key] = authority.save(&args.dir).map_err(failed)?;
    let dir = args.dir.display();
    Ok(format!(
        "wrote {cert} (authority of {cluster}, valid until {until})\n\
         wrote {key} (its private key)\n\
         next: node certs issue proxy proxy-1 --dir {dir}\n\
         Every node gets a copy of {AUTHORITY_CERT_FILE}; no node gets {AUTHORITY_KEY_FILE}: who has it is the \
         cluster. Keep it offline, with a backup.\n",
        cert = cert.display(),
        key = key.display(),
        cluster = authority.cluster(),
        until = format_utc(authority.not_after()),
    ))
}

fn issue(args: IssueArgs) -> Result<String, CliError> {
    let name = node_name(&args.name)?;
    let mut request = Request::new(args.kind.into(), name, validity(args.days)?);
    request.dns = args.names.dns;
    request.ips = args.names.ips;
    request.key = args.key.into();
    let authority = Authority::load(&args.dir).map_err(authority_error)?;
    let issued = authority.issue(&request).map_err(authority_error)?;
    let [cert, key] = issued.save(&args.dir).map_err(failed)?;
    let (cert, key, ca) = (
        cert.display(),
        key.display(),
        args.dir.join(AUTHORITY_CERT_FILE),
    );
    Ok(format!(
        "wrote {cert} ({}, valid until {})\n\
         wrote {key} (its private key)\n\
         next: move {cert} and {key} to the {} {}, with a copy of {}; [tls] in its config names them as cert, key \
         and ca. {AUTHORITY_KEY_FILE} stays here.\n",
        issued.identity,
        format_utc(issued.validity.not_after()),
        whose(request.kind),
        issued.identity.name,
        ca.display(),
    ))
}

fn csr(args: &CsrArgs) -> Result<String, CliError> {
    let identity = Identity {
        cluster: args.cluster.parse().map_err(usage)?,
        kind: args.kind.into(),
        name: node_name(&args.name)?,
    };
    let csr = Csr::generate(identity, &args.names.dns, &args.names.ips, args.key.into())
        .map_err(csr_error)?;
    let [key, request] = csr.save(&args.dir).map_err(failed)?;
    let (key, request) = (key.display(), request.display());
    Ok(format!(
        "wrote {key} (private key: it stays here)\n\
         wrote {request} (asks to be {})\n\
         next: send {request} to whoever holds {AUTHORITY_KEY_FILE}, who runs node certs sign on it and sends back \
         {}.pem and {AUTHORITY_CERT_FILE}; put both beside the key\n",
        csr.identity(),
        csr.identity().name,
    ))
}

fn sign(args: &SignArgs) -> Result<String, CliError> {
    let validity = validity(args.days)?;
    let authority = Authority::load(&args.dir).map_err(authority_error)?;
    let request = certs::read_pem(&args.file).map_err(failed)?;
    let signed = authority
        .sign(&request, &validity)
        .map_err(|error| CliError::Failed(format!("{}: {error}", args.file.display())))?;
    not_the_authoritys_file(&signed.identity.name)?;
    let cert = signed.save(&args.dir).map_err(failed)?;
    let mut names = signed.dns.clone();
    names.extend(signed.ips.iter().map(ToString::to_string));
    let names = if names.is_empty() {
        String::new()
    } else {
        format!(", also {}", names.join(", "))
    };
    Ok(format!(
        "wrote {cert} ({}{names}, valid until {})\n\
         next: send {cert} and {} back to where the request came from, to lie beside {}.key\n",
        signed.identity,
        format_utc(signed.validity.not_after()),
        args.dir.join(AUTHORITY_CERT_FILE).display(),
        signed.identity.name,
        cert = cert.display(),
    ))
}

fn show(args: &ShowArgs) -> Result<String, CliError> {
    let certificates = certs::inspect_file(&args.file).map_err(failed)?;
    let now = now_secs()?;
    if args.json {
        let list: Vec<_> = certificates
            .iter()
            .map(|certificate| as_json(certificate, now))
            .collect();
        let text = serde_json::to_string_pretty(&list).map_err(failed)?;
        return Ok(format!("{text}\n"));
    }
    let texts: Vec<String> = certificates
        .iter()
        .map(|certificate| as_text(certificate, now))
        .collect();
    Ok(texts.join("\n"))
}

fn as_text(certificate: &Inspection, now: i64) -> String {
    let mut text = String::new();
    let mut line = |label: &str, value: &str| {
        if !value.is_empty() {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{label:<12} {value}");
        }
    };
    match &certificate.subject {
        Subject::Identity(identity) => {
            line("kind", identity.kind.as_str());
            line("name", identity.name.as_str());
            line("cluster", identity.cluster.as_str());
        }
        Subject::Authority(cluster) => {
            line("kind", "authority");
            line(
                "cluster",
                cluster.as_ref().map_or("(names none)", Cluster::as_str),
            );
        }
        Subject::Stranger(why) => line("kind", &format!("none of this mesh: {why}")),
    }
    line(
        "from",
        &with_remark(
            &certificate.valid_from(),
            if now < certificate.not_before {
                "not valid yet"
            } else {
                ""
            },
        ),
    );
    line(
        "until",
        &with_remark(&certificate.valid_until(), &remaining(certificate, now)),
    );
    line("uri", &printable(&certificate.uris.join(", ")));
    line("dns", &printable(&certificate.dns.join(", ")));
    line("ip", &ip_texts(certificate).join(", "));
    line("usage", &certificate.usages.join(", "));
    line("key", &certificate.key);
    line("issuer", &printable(&certificate.issuer));
    line("serial", &certificate.serial);
    line("sha256", &certificate.sha256);
    text
}

fn as_json(certificate: &Inspection, now: i64) -> serde_json::Value {
    let (kind, cluster, name, problem) = match &certificate.subject {
        Subject::Identity(identity) => (
            identity.kind.as_str(),
            Some(identity.cluster.as_str()),
            Some(identity.name.as_str()),
            None,
        ),
        Subject::Authority(cluster) => (
            "authority",
            cluster.as_ref().map(Cluster::as_str),
            None,
            None,
        ),
        Subject::Stranger(why) => ("unknown", None, None, Some(why.as_str())),
    };
    json!({
        "kind": kind,
        "cluster": cluster,
        "name": name,
        "problem": problem,
        "not_before": certificate.valid_from(),
        "not_after": certificate.valid_until(),
        "days_left": certificate.days_left(now),
        "valid_now": (certificate.not_before..=certificate.not_after).contains(&now),
        "uri": certificate.uris,
        "dns": certificate.dns,
        "ip": ip_texts(certificate),
        "usage": certificate.usages,
        "key": certificate.key,
        "issuer": certificate.issuer,
        "serial": certificate.serial,
        "sha256": certificate.sha256,
    })
}

fn ip_texts(certificate: &Inspection) -> Vec<String> {
    certificate.ips.iter().map(ToString::to_string).collect()
}

fn remaining(certificate: &Inspection, now: i64) -> String {
    if now > certificate.not_after {
        return "EXPIRED".to_owned();
    }
    match certificate.days_left(now) {
        0 => "less than a day left".to_owned(),
        1 => "1 day left".to_owned(),
        days => format!("{days} days left"),
    }
}

fn with_remark(value: &str, remark: &str) -> String {
    if remark.is_empty() {
        value.to_owned()
    } else {
        format!("{value} ({remark})")
    }
}

/// A file may come from anyone: control characters in it do not reach the terminal.
fn printable(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect()
}

fn whose(kind: Kind) -> &'static str {
    match kind {
        Kind::Proxy => "host of proxy",
        Kind::Agent => "host of agent",
        Kind::User => "machine of user",
    }
}

fn node_name(name: &str) -> Result<NodeName, CliError> {
    let name: NodeName = name.parse().map_err(usage)?;
    not_the_authoritys_file(&name)?;
    Ok(name)
}

/// `ca.pem` and `ca.key` are the authority's in whatever directory they lie.
fn not_the_authoritys_file(name: &NodeName) -> Result<(), CliError> {
    if name.as_str() == "ca" {
        return Err(CliError::Usage(format!(
            "name \"ca\" cannot be used: its files would be {AUTHORITY_CERT_FILE} and {AUTHORITY_KEY_FILE}, which are \
             the authority's"
        )));
    }
    Ok(())
}

fn validity(days: u32) -> Result<Validity, CliError> {
    if !(1..=DAYS_MAX).contains(&days) {
        return Err(CliError::Usage(format!(
            "--days {days}: must be within 1 and {DAYS_MAX}"
        )));
    }
    Validity::days(days).map_err(failed)
}

fn now_secs() -> Result<i64, CliError> {
    certs::system_time()
        .current_time()
        .and_then(|now| i64::try_from(now.as_secs()).ok())
        .ok_or_else(|| {
            CliError::Failed("this host's clock is before 1970: set it first".to_owned())
        })
}

fn authority_error(error: AuthorityError) -> CliError {
    if matches!(error, AuthorityError::AltName(_)) {
        usage(error)
    } else {
        failed(error)
    }
}

fn csr_error(error: CsrError) -> CliError {
    if matches!(error, CsrError::AltName(_)) {
        usage(error)
    } else {
        failed(error)
    }
}

fn usage(error: impl std::fmt::Display) -> CliError {
    CliError::Usage(error.to_string())
}

fn failed(error: impl std::fmt::Display) -> CliError {
    CliError::Failed(error.to_string())
}

#[cfg(test)]
mod tests;
