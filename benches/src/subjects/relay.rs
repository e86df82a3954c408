//! The limits: two hops that copy bytes, plain or over TLS with one TCP connection per stream.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::{AsyncRead, AsyncWrite, copy_bidirectional_with_sizes};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::{Place, Subject, Tunnel};
use crate::process::Process;

/// Bytes of a copy buffer, one in each direction.
const BUFFER_BYTES: usize = 64 << 10;

const BACKLOG: u32 = 4096;

/// The name in the relay's certificate.
const SERVER_NAME: &str = "relay.test";

/// A relay of this program.
#[derive(Debug)]
pub(crate) enum Relay {
    /// TCP between the hops.
    Plain,
    /// TLS between the hops.
    Tls,
}

impl Subject for Relay {
    fn name(&self) -> &str {
        match self {
            Self::Plain => "plain relay",
            Self::Tls => "TLS relay",
        }
    }

    fn start(&self, place: &Place, dir: &Path) -> anyhow::Result<Tunnel> {
        let entry = SocketAddr::new(place.entry, place.port()?);
        let middle = SocketAddr::new(place.far, place.port()?);
        let (outer, inner) = match self {
            Self::Plain => ("plain", "plain"),
            Self::Tls => {
                let made = rcgen::generate_simple_self_signed([SERVER_NAME.to_owned()])?;
                fs::write(dir.join("cert.pem"), made.cert.pem())?;
                fs::write(dir.join("key.pem"), made.signing_key.serialize_pem())?;
                ("tls-out", "tls-in")
            }
        };
        let this = std::env::current_exe()?;
        let mut near = place.near_command(&this);
        near.args(["relay", "--tls", outer]).args([
            "--listen",
            &entry.to_string(),
            "--to",
            &middle.to_string(),
        ]);
        let mut far = place.far_command(&this);
        far.args(["relay", "--tls", inner])
            .args(["--listen", &middle.to_string()])
            .args(["--to", &place.target.to_string()]);
        Ok(Tunnel {
            entry,
            processes: [
                Process::start(near, dir, "near")?,
                Process::start(far, dir, "far")?,
            ],
            _link: None,
        })
    }
}

/// Arguments of one hop.
#[derive(Debug, Args)]
pub(crate) struct HopArgs {
    #[arg(long)]
    listen: SocketAddr,
    #[arg(long)]
    to: SocketAddr,
    #[arg(long)]
    tls: HopTls,
}

/// Where a hop speaks TLS.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum HopTls {
    Plain,
    TlsOut,
    TlsIn,
}

/// Runs one hop, in the directory of its certificate, until it is killed.
pub(crate) fn serve(args: &HopArgs) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let socket = TcpSocket::new_v4()?;
        socket.set_reuseaddr(true)?;
        socket.bind(args.listen)?;
        let listener = socket.listen(BACKLOG)?;
        let tls = Tls::new(args.tls)?;
        loop {
            let (socket, _) = listener.accept().await?;
            let (tls, to) = (tls.clone(), args.to);
            // An error is the end of one connection; whoever measures it sees that.
            tokio::spawn(async move {
                let _ = relay(socket, to, &tls).await;
            });
        }
    })
}

#[derive(Clone)]
enum Tls {
    Plain,
    Out(TlsConnector),
    In(TlsAcceptor),
}

impl Tls {
    fn new(kind: HopTls) -> anyhow::Result<Self> {
        let cert = || CertificateDer::from_pem_file(PathBuf::from("cert.pem")).context("cert.pem");
        Ok(match kind {
            HopTls::Plain => Self::Plain,
            HopTls::TlsOut => {
                let mut roots = RootCertStore::empty();
                roots.add(cert()?)?;
                let config = ClientConfig::builder_with_provider(certs::provider())
                    .with_safe_default_protocol_versions()?
                    .with_root_certificates(roots)
                    .with_no_client_auth();
                Self::Out(TlsConnector::from(Arc::new(config)))
            }
            HopTls::TlsIn => {
                let key = PrivateKeyDer::from_pem_file("key.pem").context("key.pem")?;
                let config = ServerConfig::builder_with_provider(certs::provider())
                    .with_safe_default_protocol_versions()?
                    .with_no_client_auth()
                    .with_single_cert(vec![cert()?], key)?;
                Self::In(TlsAcceptor::from(Arc::new(config)))
            }
        })
    }
}

async fn relay(socket: TcpStream, to: SocketAddr, tls: &Tls) -> anyhow::Result<()> {
    socket.set_nodelay(true)?;
    let onward = async {
        let onward = TcpStream::connect(to).await?;
        onward.set_nodelay(true)?;
        anyhow::Ok(onward)
    };
    match tls {
        Tls::Plain => copy(socket, onward.await?).await,
        Tls::Out(connector) => {
            let name = ServerName::try_from(SERVER_NAME)?;
            copy(socket, connector.connect(name, onward.await?).await?).await
        }
        Tls::In(acceptor) => {
            let socket = acceptor.accept(socket).await?;
            copy(socket, onward.await?).await
        }
    }
}

async fn copy<A, B>(mut a: A, mut b: B) -> anyhow::Result<()>
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    copy_bidirectional_with_sizes(&mut a, &mut b, BUFFER_BYTES, BUFFER_BYTES).await?;
    Ok(())
}
