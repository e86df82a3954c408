//! `node demo`: two proxies, an agent and a file server in this process, to try the mesh.

#![expect(
    clippy::print_stdout,
    reason = "this verb shows what it made and what to type"
)]

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use bytes::Bytes;
use certs::{Authority, Credentials, Kind, Request, Validity};
use clap::Args;
use http_body_util::Full;
use mesh_proto::allow::AllowList;
use mesh_proto::name::{Cluster, Group, NodeName};
use mesh_proto::target::Target;
use mesh_proto::wire::Protocol;
use rand::RngCore as _;
use tokio::net::{TcpListener, TcpStream};
use tower_http::services::ServeDir;

use super::{CliError, client};
use crate::agent::Agent;
use crate::config::{
    AgentConfig, IngressConfig, IngressKind, LogConfig, ProxyConfig, ServiceConfig,
};
use crate::proxy::{Phase, Proxy};

/// How long the demo waits for its agent.
const CONNECT_DEADLINE: Duration = Duration::from_secs(15);

/// How long one request of `--check` may take.
const REQUEST_DEADLINE: Duration = Duration::from_secs(30);

/// Size of the larger file, in bytes.
const LARGE_FILE_BYTES: usize = 8 << 20;

/// Arguments of `node demo`.
#[derive(Debug, Args)]
pub struct DemoArgs {
    /// Use free ports, make the requests itself, compare what comes back, and exit.
    #[arg(long)]
    check: bool,
}

/// Runs the demo: until Ctrl-C, or with `--check` until all was verified.
///
/// # Errors
/// When a part cannot start, or an answer is not what it should be.
pub fn run(args: &DemoArgs) -> Result<(), CliError> {
    let filter = if args.check { "warn" } else { "info" };
    super::run::init_log(&LogConfig {
        filter: filter.into(),
        ..LogConfig::default()
    })?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| CliError::Failed(format!("cannot start: {error}")))?;
    runtime.block_on(async {
        let demo = Demo::start(args.check).await?;
        let outcome = if args.check {
            demo.check().await
        } else {
            demo.explain();
            tokio::signal::ctrl_c()
                .await
                .map_err(|error| CliError::Failed(format!("cannot listen for Ctrl-C: {error}")))
        };
        demo.stop().await;
        outcome
    })
}

struct Demo {
    files: tempfile::TempDir,
    file_server: tokio::task::JoinHandle<()>,
    file_addr: SocketAddr,
    proxies: [Proxy; 2],
    agent: Agent,
}

fn failed(what: &str) -> impl FnOnce(&dyn std::fmt::Display) -> CliError + '_ {
    move |error| CliError::Failed(format!("demo: {what}: {error}"))
}

impl Demo {
    async fn start(free_ports: bool) -> Result<Self, CliError> {
        let port =
            |port: u16| SocketAddr::from((Ipv4Addr::LOCALHOST, if free_ports { 0 } else { port }));
        let files = make_files().map_err(|error| failed("cannot make the files")(&error))?;
        let (file_addr, file_server) = serve_files(port(8125), files.path()).await?;
        let identities = Identities::new()?;

        let first = start_proxy(&identities, "proxy-1", port(8123), Vec::new()).await?;
        // The second joins the first. The agent stays with the first alone, and is reached through both.
        let addresses = vec![first.quic_addr().to_string()];
        let second = start_proxy(&identities, "proxy-2", port(8124), addresses.clone()).await?;
        let agent = start_agent(&identities, addresses, file_addr).await?;
        let demo = Self {
            files,
            file_server,
            file_addr,
            proxies: [first, second],
            agent,
        };

        let mut connected = demo.agent.connected();
        let one = connected.wait_for(|connected| *connected == 1);
        tokio::time::timeout(CONNECT_DEADLINE, one)
            .await
            .map_err(|_| {
                CliError::Failed(format!(
                    "demo: the agent did not connect to its proxy within {CONNECT_DEADLINE:?}; is UDP on the loopback interface blocked?"
                ))
            })?
            .map_err(|error| failed("the agent has ended")(&error))?;
        for proxy in &demo.proxies {
            let mut phase = proxy.readiness();
            let ready = phase.wait_for(|phase| *phase == Phase::Serving);
            // It serves when its join deadline has passed, too.
            let _ = ready.await;
        }
        Ok(demo)
    }

    fn url(&self, proxy: &Proxy, path: &str) -> String {
        let ingress = proxy
            .ingress_addrs()
            .first()
            .map(ToString::to_string)
            .unwrap_or_default();
        format!("http://{ingress}/client/foo/http/{}/{path}", self.file_addr)
    }

    fn explain(&self) {
        let [first, second] = &self.proxies;
        println!("The mesh of cluster demo.example.com, all in this process:");
        println!();
        for proxy in &self.proxies {
            let name = proxy.name();
            let users = proxy
                .ingress_addrs()
                .first()
                .map(ToString::to_string)
                .unwrap_or_default();
            println!(
                "  {name}      users on http://{users}, agents on udp {}",
                proxy.quic_addr()
            );
        }
        println!(
            "  agent foo    connected to {} alone, may reach {}",
            first.name(),
            self.file_addr
        );
        println!(
            "  files        {} on http://{}",
            self.files.path().display(),
            self.file_addr
        );
        println!();
        println!(
            "Reach the file server through the agent, by either proxy: the second passes it on to the first."
        );
        println!();
        println!("  curl {}", self.url(first, ""));
        println!("  curl {}", self.url(second, "hello.txt"));
        println!("  curl -o /dev/null {}", self.url(first, "large.bin"));
        println!();
        println!("And what is refused, with its reason:");
        println!();
        println!(
            "  curl -i {}",
            self.url(second, "").replace("/client/foo/", "/client/bar/")
        );
        println!();
        println!("Ctrl-C ends it.");
    }

    /// Makes the requests that [`Demo::explain`] shows, and some more.
    async fn check(&self) -> Result<(), CliError> {
        println!("ok    two proxies, agent foo and a file server are up");
        for proxy in &self.proxies {
            for file in ["hello.txt", "large.bin"] {
                let url = self.url(proxy, file);
                let expected = std::fs::read(self.files.path().join(file))
                    .map_err(|error| failed("cannot read a file")(&error))?;
                let (status, body) = get(&url).await?;
                step(
                    status == 200 && body == expected,
                    &format!("GET {url}: {} bytes, as in the file", expected.len()),
                    &format!(
                        "GET {url}: status {status}, {} bytes, not those of the file",
                        body.len()
                    ),
                )?;
            }
            let url = self.url(proxy, "").replace("/client/foo/", "/client/bar/");
            let (status, body) = get(&url).await?;
            step(
                status == 502 && body.starts_with(b"no_agent"),
                &format!("GET {url}: refused as no_agent, as it should be"),
                &format!(
                    "GET {url}: status {status} instead of 502 no_agent: {}",
                    String::from_utf8_lossy(&body)
                ),
            )?;
            let dialled = match proxy.dialer("foo") {
                Ok(dialer) => dialer
                    .dial("service:files")
                    .await
                    .map_err(|error| error.to_string()),
                Err(error) => Err(error.to_string()),
            };
            step(
                dialled.is_ok(),
                &format!(
                    "dial of service:files at foo through {}: connected",
                    proxy.name()
                ),
                &format!(
                    "dial of service:files through {}: {}",
                    proxy.name(),
                    dialled.err().unwrap_or_default()
                ),
            )?;
        }
        Ok(())
    }

    async fn stop(self) {
        let [first, second] = self.proxies;
        self.agent.shutdown().await;
        first.shutdown().await;
        second.shutdown().await;
        self.file_server.abort();
        let _ = self.file_server.await;
    }
}

fn step(passed: bool, right: &str, wrong: &str) -> Result<(), CliError> {
    if passed {
        println!("ok    {right}");
        Ok(())
    } else {
        println!("FAIL  {wrong}");
        Err(CliError::Failed(format!("demo: {wrong}")))
    }
}

/// Throwaway identities of one cluster; nothing is written.
struct Identities {
    authority: Authority,
    validity: Validity,
}

impl Identities {
    fn new() -> Result<Self, CliError> {
        let cluster: Cluster = "demo.example.com"
            .parse()
            .map_err(|error| failed("cluster")(&error))?;
        let validity = Validity::days(1).map_err(|error| failed("validity")(&error))?;
        let authority = Authority::create(cluster, &validity)
            .map_err(|error| failed("cannot create an authority")(&error))?;
        Ok(Self {
            authority,
            validity,
        })
    }

    fn issue(&self, kind: Kind, name: &str) -> Result<Arc<Credentials>, CliError> {
        let name: NodeName = name.parse().map_err(|error| failed("name")(&error))?;
        let issued = self
            .authority
            .issue(&Request::new(kind, name, self.validity))
            .map_err(|error| failed("cannot issue a certificate")(&error))?;
        let credentials = Credentials::from_pem(
            self.authority.ca_pem().as_bytes(),
            issued.cert_pem.as_bytes(),
            issued.key_pem.as_bytes(),
        )
        .map_err(|error| failed("cannot use a certificate")(&error))?;
        Ok(Arc::new(credentials))
    }
}

async fn start_proxy(
    identities: &Identities,
    name: &str,
    http: SocketAddr,
    peers: Vec<String>,
) -> Result<Proxy, CliError> {
    let group: Group = "demo".parse().map_err(|error| failed("group")(&error))?;
    let mut config = ProxyConfig::new(identities.issue(Kind::Proxy, name)?, group);
    config.common.quic.listen = (Ipv4Addr::LOCALHOST, 0).into();
    config.common.drain_deadline = Duration::from_secs(2);
    config.drain_notice = Duration::ZERO;
    config.peers = peers;
    config.ingresses.push(IngressConfig::new(
        http,
        IngressKind::Http { upstream_ca: None },
    ));
    Proxy::start(config).await.map_err(|error| {
        CliError::Failed(format!(
            "demo: {error}; the demo needs the ports 8123, 8124 and 8125 (with --check it takes free ones)"
        ))
    })
}

async fn start_agent(
    identities: &Identities,
    proxies: Vec<String>,
    files: SocketAddr,
) -> Result<Agent, CliError> {
    let mut config = AgentConfig::new(identities.issue(Kind::Agent, "foo")?, proxies);
    config.connection_count = Some(1);
    config.common.drain_deadline = Duration::from_secs(2);
    let rule = files
        .to_string()
        .parse()
        .map_err(|error| failed("allow")(&error))?;
    config.allow = AllowList(vec![rule]);
    config.services.push(ServiceConfig {
        name: "files".parse().map_err(|error| failed("service")(&error))?,
        address: Target::Address(files),
        protocol: Protocol::Http,
    });
    Agent::start(config)
        .await
        .map_err(|error| failed("agent")(&error))
}

fn make_files() -> std::io::Result<tempfile::TempDir> {
    let dir = tempfile::Builder::new().prefix("mesh-demo-").tempdir()?;
    let file = |name: &str, content: &[u8]| std::fs::write(dir.path().join(name), content);
    file("index.html", INDEX.as_bytes())?;
    file("hello.txt", b"Hello from behind the agent.\n")?;
    // Not compressible and not repeating, so that a lost or doubled piece shows.
    let mut large = vec![0; LARGE_FILE_BYTES];
    crate::random::Random::system()
        .generator()
        .fill_bytes(&mut large);
    file("large.bin", &large)?;
    Ok(dir)
}

const INDEX: &str = "<!doctype html>\n<title>mesh demo</title>\n\
    <p>This page is served by a file server that only the agent <b>foo</b> is allowed to reach.</p>\n\
    <ul><li><a href=\"hello.txt\">hello.txt</a></li><li><a href=\"large.bin\">large.bin</a>, 8 MiB</li></ul>\n";

async fn serve_files(
    address: SocketAddr,
    dir: &Path,
) -> Result<(SocketAddr, tokio::task::JoinHandle<()>), CliError> {
    let bind_failed = |error: std::io::Error| {
        CliError::Failed(format!(
            "demo: the file server cannot listen on {address}: {error}; the demo needs the ports 8123, 8124 and 8125 (with --check it takes free ones)"
        ))
    };
    let listener = TcpListener::bind(address).await.map_err(bind_failed)?;
    let address = listener.local_addr().map_err(bind_failed)?;
    let router = Router::new().fallback_service(ServeDir::new(dir));
    let server = tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, router).await {
            tracing::error!(%error, "the file server has ended");
        }
    });
    Ok((address, server))
}

/// A plain HTTP request, as curl would make it.
async fn get(url: &str) -> Result<(u16, Bytes), CliError> {
    let request = async {
        let uri: http::Uri = url.parse()?;
        let authority = uri.authority().map(ToString::to_string).unwrap_or_default();
        let stream = TcpStream::connect(&authority).await?;
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        let request = http::Request::get(path)
            .header(http::header::HOST, &authority)
            .body(Full::default())?;
        let (status, body) = client::exchange(stream, request).await?;
        anyhow::Ok((status.as_u16(), body))
    };
    match tokio::time::timeout(REQUEST_DEADLINE, request).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => Err(failed(url)(&error)),
        Err(_) => Err(CliError::Failed(format!(
            "demo: no answer to {url} within {REQUEST_DEADLINE:?}"
        ))),
    }
}
