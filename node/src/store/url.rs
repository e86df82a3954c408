//! How a store is named: `redb:PATH`, or `etcd://[user[:password]@]host:port,…/prefix?…`.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use mesh_proto::{HostName, Target};
use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, utf8_percent_encode};

/// The port of etcd where none is written.
const ETCD_PORT: u16 = 2379;

/// The most members that a URL names.
const ENDPOINTS_MAX: usize = 16;

/// The longest prefix, in bytes.
const PREFIX_BYTES_MAX: usize = 256;

/// What etcd's keys begin with where no prefix is written.
const PREFIX: &str = "/mesh/";

/// The longest URL, in bytes.
const URL_BYTES_MAX: usize = 4096;

const FORMS: &str =
    "write redb:PATH, or etcd://[user[:password]@]host:port,host:port/prefix?ca=FILE";

/// Where a store is.
///
/// `Display` writes it with the password masked, and `Debug` too.
#[derive(Clone, PartialEq, Eq)]
pub enum StoreUrl {
    /// A file of this process alone. A relative path is for whoever reads the config to resolve.
    Redb(PathBuf),
    /// An etcd cluster.
    Etcd(EtcdUrl),
}

/// How to reach an etcd cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EtcdUrl {
    /// Its members, `host:port` each; never none.
    pub endpoints: Vec<String>,
    /// The user, if the cluster wants one.
    pub user: Option<String>,
    /// The user's password.
    pub password: Password,
    /// What all keys begin with; it begins and ends with a slash.
    pub prefix: String,
    /// With TLS, and how.
    pub tls: Option<TlsFiles>,
}

/// Where a password is. `Debug` masks it.
#[derive(Clone, Default, PartialEq, Eq)]
pub enum Password {
    /// There is none.
    #[default]
    None,
    /// In the URL.
    Text(String),
    /// In a file, without the line break at its end.
    File(PathBuf),
}

/// TLS to etcd. Without a file of authorities, the system's are trusted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TlsFiles {
    /// PEM file of the authorities to trust.
    pub ca: Option<PathBuf>,
    /// PEM files of a client certificate and its key.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// The name that the server's certificate must bear, if not the dialled one.
    pub server_name: Option<String>,
}

/// A text that names no store: everything that is wrong with it. No part of a password is in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InvalidStoreUrl {
    faults: Vec<String>,
}

impl InvalidStoreUrl {
    /// What is wrong, and what to do; never none.
    #[must_use]
    pub fn faults(&self) -> &[String] {
        &self.faults
    }

    fn one(fault: impl Into<String>) -> Self {
        Self {
            faults: vec![fault.into()],
        }
    }
}

impl fmt::Display for InvalidStoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.faults.join("; "))
    }
}

impl std::error::Error for InvalidStoreUrl {}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("None"),
            Self::Text(_) => f.write_str("***"),
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
        }
    }
}

impl fmt::Debug for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StoreUrl({self})")
    }
}

impl fmt::Display for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Redb(path) => write!(f, "redb:{}", path.display()),
            Self::Etcd(url) => url.fmt(f),
        }
    }
}

/// What stands for something else in a URL.
const ESCAPED: &AsciiSet = &CONTROLS
    .add(b' ')
    .add(b'%')
    .add(b'&')
    .add(b'#')
    .add(b'?')
    .add(b'@')
    .add(b':')
    .add(b'+');

fn escaped(text: &str) -> impl fmt::Display + '_ {
    utf8_percent_encode(text, ESCAPED)
}

impl fmt::Display for EtcdUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("etcd://")?;
        if let Some(user) = &self.user {
            let user = user.replace('/', "\u{0}");
            // A slash would end the authority.
            write!(f, "{}", escaped(&user).to_string().replace("%00", "%2F"))?;
            if matches!(self.password, Password::Text(_)) {
                f.write_str(":***")?;
            }
            f.write_str("@")?;
        }
        write!(f, "{}{}", self.endpoints.join(","), escaped(&self.prefix))?;
        let mut pairs = Vec::new();
        if let Some(tls) = &self.tls {
            let file = |key: &str, path: &PathBuf| {
                format!("{key}={}", escaped(&path.display().to_string()))
            };
            pairs.extend(tls.ca.iter().map(|path| file("ca", path)));
            if let Some((cert, key)) = &tls.identity {
                pairs.extend([file("cert", cert), file("key", key)]);
            }
            pairs.extend(tls.server_name.iter().map(|n| format!("server_name={n}")));
            if pairs.is_empty() {
                pairs.push("tls=true".to_owned());
            }
        }
        if let Password::File(path) = &self.password {
            pairs.push(format!(
                "password_file={}",
                escaped(&path.display().to_string())
            ));
        }
        if !pairs.is_empty() {
            write!(f, "?{}", pairs.join("&"))?;
        }
        Ok(())
    }
}

impl FromStr for StoreUrl {
    type Err = InvalidStoreUrl;

    fn from_str(text: &str) -> Result<Self, InvalidStoreUrl> {
        if text.len() > URL_BYTES_MAX {
            return Err(InvalidStoreUrl::one(format!(
                "it has {} bytes, over the limit of {URL_BYTES_MAX}",
                text.len()
            )));
        }
        if text.chars().any(char::is_control) {
            return Err(InvalidStoreUrl::one(format!(
                "it has a control character; {FORMS}"
            )));
        }
        if let Some(path) = text.strip_prefix("redb:") {
            if path.is_empty() || path.ends_with('/') {
                return Err(InvalidStoreUrl::one(
                    "the file is missing; write redb:PATH, as in redb:store.redb",
                ));
            }
            return Ok(Self::Redb(path.into()));
        }
        match text.strip_prefix("etcd://") {
            Some(rest) => parse_etcd(rest).map(Self::Etcd),
            None if text.starts_with("etcd:") => Err(InvalidStoreUrl::one(
                "two slashes are missing; write etcd://host:port/prefix",
            )),
            // Not repeated: there may be a password in it.
            None => Err(InvalidStoreUrl::one(format!(
                "it begins with neither redb: nor etcd://; {FORMS}"
            ))),
        }
    }
}

fn parse_etcd(rest: &str) -> Result<EtcdUrl, InvalidStoreUrl> {
    let mut faults = Vec::new();
    let (rest, query) = match rest.split_once('?') {
        Some((rest, query)) => (rest, Some(query)),
        None => (rest, None),
    };
    let (authority, path) = match rest.find('/') {
        Some(at) => rest.split_at(at),
        None => (rest, ""),
    };
    // What was cut in the middle of a password must not be shown as a host.
    let cut = path.contains('@') || query.is_some_and(|query| query.contains('@'));
    if cut || rest.contains('#') {
        return Err(InvalidStoreUrl::one(
            "there is a '#', or a '@' behind the first '/' or '?'; in a user's name and password write '/' as %2F, '?' as %3F, '#' as %23, '@' as %40, ':' as %3A and '%' as %25",
        ));
    }
    let (user, hosts) = match authority.rsplit_once('@') {
        Some((user, hosts)) => (Some(user), hosts),
        None => (None, authority),
    };
    let (user, mut password) = match user {
        Some(user) => parse_user(user, &mut faults),
        None => (None, Password::None),
    };
    let endpoints = parse_endpoints(hosts, &mut faults);
    let prefix = parse_prefix(path, &mut faults);
    let query = parse_query(query.unwrap_or_default(), &mut faults);
    if let Some(path) = query.password_file {
        match (&user, &password) {
            (None, _) => faults.push("password_file is for a user; write etcd://user@…".to_owned()),
            (Some(_), Password::None) => password = Password::File(path),
            (Some(_), _) => {
                faults.push("there is a password and a password_file; leave one out".to_owned());
            }
        }
    }
    if faults.is_empty() {
        Ok(EtcdUrl {
            endpoints,
            user,
            password,
            prefix,
            tls: query.tls,
        })
    } else {
        Err(InvalidStoreUrl { faults })
    }
}

fn parse_user(text: &str, faults: &mut Vec<String>) -> (Option<String>, Password) {
    let (user, password) = match text.split_once(':') {
        Some((user, password)) => (user, Some(password)),
        None => (text, None),
    };
    let decode = |text: &str| {
        let stray = text.contains('@') || (password.is_some() && text.contains(':'));
        let decoded = percent_decode_str(text).decode_utf8().ok()?;
        let whole = has_whole_escapes(text) && !decoded.chars().any(char::is_control);
        (whole && !stray && !decoded.is_empty()).then(|| decoded.into_owned())
    };
    let name = decode(user);
    if name.is_none() {
        faults.push("the user before '@' is empty or not well formed; write user or user:password, with '@' as %40 and ':' as %3A".to_owned());
    }
    let password = match password.map(decode) {
        None => Password::None,
        Some(Some(password)) => Password::Text(password),
        Some(None) => {
            faults.push("the password is empty or not well formed; write '/' as %2F, '?' as %3F, '#' as %23, '@' as %40, ':' as %3A and '%' as %25".to_owned());
            Password::None
        }
    };
    (name, password)
}

/// Whether each '%' begins an escape.
fn has_whole_escapes(text: &str) -> bool {
    text.split('%')
        .skip(1)
        .all(|rest| rest.len() >= 2 && rest.bytes().take(2).all(|byte| byte.is_ascii_hexdigit()))
}

fn parse_endpoints(hosts: &str, faults: &mut Vec<String>) -> Vec<String> {
    let texts: Vec<&str> = hosts.split(',').collect();
    if texts.len() > ENDPOINTS_MAX {
        faults.push(format!(
            "there are {} members, over the limit of {ENDPOINTS_MAX}",
            texts.len()
        ));
        return Vec::new();
    }
    let mut endpoints: Vec<String> = Vec::new();
    for text in texts {
        match Target::default_port(text, ETCD_PORT) {
            Ok(target @ (Target::Address(_) | Target::Host { .. })) => {
                let endpoint = target.to_string();
                if endpoints.contains(&endpoint) {
                    faults.push(format!("{endpoint} is named twice"));
                }
                endpoints.push(endpoint);
            }
            Ok(Target::Unix(_) | Target::Service(_)) | Err(_) => faults.push(format!(
                "{} is not host:port; write host:port or [v6]:port, with commas between them",
                quoted(text)
            )),
        }
    }
    endpoints
}

fn parse_prefix(path: &str, faults: &mut Vec<String>) -> String {
    let decoded = percent_decode_str(path).decode_utf8();
    let Ok(decoded) = decoded else {
        faults.push("the prefix is not UTF-8".to_owned());
        return PREFIX.to_owned();
    };
    let inner = decoded.trim_matches('/');
    if inner.is_empty() {
        return PREFIX.to_owned();
    }
    let good = has_whole_escapes(path)
        && !inner.chars().any(char::is_control)
        && inner.split('/').all(|part| !part.is_empty());
    if !good || inner.len() > PREFIX_BYTES_MAX {
        faults.push(format!(
            "{} is no prefix; write at most {PREFIX_BYTES_MAX} bytes, as in /mesh",
            quoted(path)
        ));
    }
    format!("/{inner}/")
}

#[derive(Default)]
struct Query {
    tls: Option<TlsFiles>,
    password_file: Option<PathBuf>,
}

fn parse_query(text: &str, faults: &mut Vec<String>) -> Query {
    const KEYS: &str = "tls, ca, cert, key, server_name, password_file";
    let mut query = Query::default();
    let mut tls = TlsFiles::default();
    let (mut off, mut on) = (false, false);
    let (mut cert, mut key) = (None, None);
    let mut seen: Vec<&str> = Vec::new();
    for pair in text.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let value = match percent_decode_str(value).decode_utf8() {
            Ok(decoded) if has_whole_escapes(value) => decoded,
            _ => {
                faults.push(format!("the value of {} is not well formed", quoted(name)));
                continue;
            }
        };
        if seen.contains(&name) {
            faults.push(format!("{} is written twice", quoted(name)));
            continue;
        }
        seen.push(name);
        if value.is_empty() && name != "tls" {
            faults.push(format!(
                "{} has no value; the keys are {KEYS}",
                quoted(name)
            ));
            continue;
        }
        match (name, value.as_ref()) {
            ("tls", "true" | "") => on = true,
            ("tls", "false") => off = true,
            ("tls", other) => {
                faults.push(format!("tls is true or false, not {}", quoted(other)));
            }
            ("ca", path) => tls.ca = Some(path.into()),
            ("cert", path) => cert = Some(PathBuf::from(path)),
            ("key", path) => key = Some(PathBuf::from(path)),
            ("password_file", path) => query.password_file = Some(path.into()),
            ("server_name", name) if name.parse::<HostName>().is_ok() => {
                tls.server_name = Some(name.to_owned());
            }
            ("server_name", other) => {
                faults.push(format!("server_name {} is no host name", quoted(other)));
            }
            // The value may be a secret under a misspelt name.
            (other, _) => {
                faults.push(format!(
                    "there is no {}; the keys are {KEYS}",
                    quoted(other)
                ));
            }
        }
    }
    tls.identity = match (cert, key) {
        (Some(cert), Some(key)) => Some((cert, key)),
        (None, None) => None,
        (Some(_), None) | (None, Some(_)) => {
            faults.push("cert and key come together; one is missing".to_owned());
            None
        }
    };
    let wanted = on || tls != TlsFiles::default();
    if off && wanted {
        faults.push("tls=false and files for TLS; leave one out".to_owned());
    }
    query.tls = wanted.then_some(tls);
    query
}

fn quoted(text: &str) -> String {
    let cut: String = text.chars().take(80).collect();
    format!("{cut:?}")
}

#[cfg(test)]
mod tests;
