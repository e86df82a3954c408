//! [rathole](https://github.com/rapiz1/rathole), over TLS. `--peer rathole=PATH` names the binary.
//!
//! Its server wants its certificate as PKCS #12, which `openssl` makes.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Place, Subject, Tunnel};
use crate::process::{Process, run};

const SERVER_NAME: &str = "rathole.test";

/// A server and a client.
#[derive(Debug)]
pub(crate) struct Rathole {
    pub(crate) binary: PathBuf,
}

impl Subject for Rathole {
    fn name(&self) -> &str {
        "rathole, TLS"
    }

    fn start(&self, place: &Place, dir: &Path) -> anyhow::Result<Tunnel> {
        let authority = rcgen::KeyPair::generate()?;
        let mut params = rcgen::CertificateParams::new(Vec::new())?;
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let ca = params.self_signed(&authority)?;
        let issuer = rcgen::Issuer::new(params, authority);
        let key = rcgen::KeyPair::generate()?;
        let cert =
            rcgen::CertificateParams::new([SERVER_NAME.to_owned()])?.signed_by(&key, &issuer)?;
        fs::write(dir.join("ca.pem"), ca.pem())?;
        fs::write(dir.join("cert.pem"), cert.pem())?;
        fs::write(dir.join("key.pem"), key.serialize_pem())?;
        // Ciphers that every reader of PKCS #12 knows.
        run(Command::new("openssl")
            .args(["pkcs12", "-export", "-out", "identity.pfx"])
            .args(["-inkey", "key.pem", "-in", "cert.pem"])
            .args(["-keypbe", "PBE-SHA1-3DES", "-certpbe", "PBE-SHA1-3DES"])
            .args(["-macalg", "sha1", "-passout", "pass:bench"])
            .current_dir(dir))?;

        let entry = SocketAddr::new(place.entry, place.port()?);
        let server = SocketAddr::new(place.near, place.port()?);
        let target = place.target;
        fs::write(
            dir.join("server.toml"),
            format!(
                "[server]\nbind_addr = \"{server}\"\ndefault_token = \"bench\"\n\
                 [server.transport]\ntype = \"tls\"\n\
                 [server.transport.tls]\npkcs12 = \"identity.pfx\"\npkcs12_password = \"bench\"\n\
                 [server.services.bench]\nbind_addr = \"{entry}\"\n"
            ),
        )?;
        fs::write(
            dir.join("client.toml"),
            format!(
                "[client]\nremote_addr = \"{server}\"\ndefault_token = \"bench\"\n\
                 [client.transport]\ntype = \"tls\"\n\
                 [client.transport.tls]\ntrusted_root = \"ca.pem\"\nhostname = \"{SERVER_NAME}\"\n\
                 [client.services.bench]\nlocal_addr = \"{target}\"\n"
            ),
        )?;
        let start = |mut command: Command, name: &str| {
            command.args([&format!("--{name}"), &format!("{name}.toml")]);
            Process::start(command, dir, name)
        };
        Ok(Tunnel {
            entry,
            processes: [
                start(place.near_command(&self.binary), "server")?,
                start(place.far_command(&self.binary), "client")?,
            ],
            _link: None,
        })
    }
}
