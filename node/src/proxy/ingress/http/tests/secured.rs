//! Tokens, TLS on either side, and client certificates.

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::*;
use crate::config::{IngressAuth, IngressTls, TokenTable};

const TOKEN: &str = "0123456789abcdef0123";

fn ca(authority: &Authority) -> CertificateDer<'static> {
    CertificateDer::from_pem_slice(authority.ca_pem().as_bytes()).unwrap()
}

/// A certificate for `localhost` and `127.0.0.1`.
fn issue(
    authority: &Authority,
    kind: Kind,
    name: &str,
) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
    let mut request = Request::new(kind, name.parse().unwrap(), Validity::days(1).unwrap());
    request.dns = vec!["localhost".into()];
    request.ips = vec![[127, 0, 0, 1].into()];
    let issued = authority.issue(&request).unwrap();
    let chain =
        CertificateDer::pem_slice_iter(issued.cert_pem.as_bytes()).collect::<Result<_, _>>();
    (
        chain.unwrap(),
        PrivateKeyDer::from_pem_slice(issued.key_pem.as_bytes()).unwrap(),
    )
}

fn serve_tls(authority: &Authority, ingress: &mut IngressConfig) {
    let (chain, key) = issue(authority, Kind::Proxy, "front");
    ingress.tls = Some(IngressTls {
        chain,
        key: Arc::new(key),
        not_after: i64::MAX,
    });
}

/// Connects with TLS, as the user `alice` of an authority or as nobody.
async fn connect(
    mesh: &Mesh,
    alice_of: Option<&Authority>,
    alpn: &[&[u8]],
) -> std::io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots.add(ca(&mesh.authority)).unwrap();
    let builder = ClientConfig::builder_with_provider(certs::provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    let mut config = match alice_of {
        Some(authority) => {
            let (chain, key) = issue(authority, Kind::User, "alice");
            builder.with_client_auth_cert(chain, key).unwrap()
        }
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    let name = ServerName::try_from("localhost").unwrap();
    TlsConnector::from(Arc::new(config))
        .connect(name, mesh.connect().await)
        .await
}

#[tokio::test]
async fn tokens() {
    let mesh = Mesh::start_with(|_, ingress| {
        let tokens = TokenTable::from_text(&format!("ci:{TOKEN}\n")).unwrap();
        ingress.auth = IngressAuth::Tokens(Arc::new(tokens));
    })
    .await;
    let target = Target::mirror("\r\n\r\n").await;
    for agent in ["a1", "ghost"] {
        for header in [
            "",
            "X-Mesh-Token: wrong\r\n",
            "Authorization: Bearer wrong\r\n",
        ] {
            let request = format!(
                "GET /client/{agent}/http/{}/ HTTP/1.1\r\nHOST\r\n{header}Connection: close\r\n\r\n",
                target.addr
            );
            let answer = mesh.ask(target.addr, &request).await;
            assert!(answer.starts_with("HTTP/1.1 401 "), "{answer}");
            assert!(
                answer.contains("www-authenticate: Bearer realm=\"mesh\"\r\n"),
                "{answer}"
            );
            assert!(answer.contains("x-mesh-error: not_allowed\r\n"), "{answer}");
        }
    }
    assert_eq!(target.accepted(), 0);
    for (header, kept) in [
        (
            format!("X-Mesh-Token: {TOKEN}\r\nAuthorization: Bearer own\r\n"),
            "authorization: Bearer own",
        ),
        (format!("Authorization: Bearer {TOKEN}\r\n"), "host: "),
    ] {
        let request = format!("GET TARGET/ HTTP/1.1\r\nHOST\r\n{header}Connection: close\r\n\r\n");
        let answer = mesh.ask(target.addr, &request).await;
        assert!(
            answer.starts_with("HTTP/1.1 200 ") && answer.contains(kept),
            "{answer}"
        );
        assert!(!answer.contains(TOKEN), "{answer}");
    }
    let principals = mesh.principals.lock().unwrap().clone();
    assert_eq!(principals, [Principal::Token("ci".parse().unwrap())]);
    mesh.stop().await;
}

#[tokio::test]
async fn a_user_of_the_cluster_is_known_by_certificate() {
    let stranger = Authority::create(
        "test.example.com".parse().unwrap(),
        &Validity::days(2).unwrap(),
    )
    .unwrap();
    let other = ca(&stranger);
    let mesh = Mesh::start_with(|authority, ingress| {
        serve_tls(authority, ingress);
        ingress.auth = IngressAuth::ClientCa(vec![ca(authority), other]);
    })
    .await;
    let target = Target::mirror("\r\n\r\n").await;
    let request = mesh.fill(
        target.addr,
        "GET TARGET/ HTTP/1.1\r\nHOST\r\nConnection: close\r\n\r\n",
    );
    // `stranger` is let in, but the names that it writes are not the cluster's.
    for authority in [&mesh.authority, &stranger] {
        let mut stream = connect(&mesh, Some(authority), &[]).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let answer = read_all(&mut stream).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        assert!(answer.contains("x-forwarded-proto: https"), "{answer}");
    }
    let open = Principal::Ingress(mesh.ingress.to_string());
    let principals = mesh.principals.lock().unwrap().clone();
    assert_eq!(
        principals,
        [Principal::User("alice".parse().unwrap()), open]
    );
    assert_eq!(target.accepted(), 2, "two principals share a connection");

    // With TLS 1.3 a client hears of the refusal when it reads.
    let refused = match connect(&mesh, None, &[]).await {
        Ok(mut stream) => read_all(&mut stream).await.unwrap_err(),
        Err(error) => error,
    };
    assert!(
        refused.to_string().to_lowercase().contains("certificate"),
        "{refused}"
    );
    mesh.stop().await;
}

#[tokio::test]
async fn protocols_are_negotiated() {
    let mesh = Mesh::start_with(serve_tls).await;
    for (offered, chosen) in [
        (&[&b"h2"[..], b"http/1.1"][..], Some(&b"h2"[..])),
        (&[b"http/1.1"], Some(b"http/1.1")),
        (&[], None),
    ] {
        let stream = connect(&mesh, None, offered).await.unwrap();
        assert_eq!(stream.get_ref().1.alpn_protocol(), chosen);
    }
    mesh.stop().await;
}

/// An `https` target that answers every request, and says what follows an upgrade back.
async fn secure_target(authority: &Authority) -> Target {
    let (chain, key) = issue(authority, Kind::Proxy, "target");
    let config = ServerConfig::builder_with_provider(certs::provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    Target::start(move |stream, _| {
        let acceptor = acceptor.clone();
        async move {
            let Ok(mut stream) = acceptor.accept(stream).await else {
                return;
            };
            let head = read_until(&mut stream, "\r\n\r\n").await;
            if head.contains("upgrade: echo") {
                stream
                    .write_all(
                        b"HTTP/1.1 101 Go\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\nearly;",
                    )
                    .await
                    .unwrap();
                let said = read_until(&mut stream, ";").await;
                stream.write_all(said.as_bytes()).await.unwrap();
                let _ = read_all(&mut stream).await;
            } else {
                stream
                    .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nsecure")
                    .await
                    .unwrap();
            }
            let _ = stream.shutdown().await;
        }
    })
    .await
}

#[tokio::test]
async fn https_targets_are_verified() {
    let mesh = Mesh::start_with(|authority, ingress| {
        ingress.kind = IngressKind::Http {
            upstream_ca: Some(vec![ca(authority)]),
        };
    })
    .await;
    let target = secure_target(&mesh.authority).await;
    for host in [
        target.addr.to_string(),
        format!("localhost:{}", target.addr.port()),
    ] {
        let request =
            format!("GET /client/a1/https/{host}/ HTTP/1.1\r\nHOST\r\nConnection: close\r\n\r\n");
        let answer = mesh.ask(target.addr, &request).await;
        assert!(
            answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("secure"),
            "{answer}"
        );
    }
    let request = format!(
        "GET /client/a1/https/{}/ HTTP/1.1\r\nHOST\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\nahead;",
        target.addr
    );
    let mut stream = mesh.send(target.addr, &request).await;
    read_until(&mut stream, "early;ahead;").await;
    stream.shutdown().await.unwrap();
    assert_eq!(read_all(&mut stream).await.unwrap(), "");

    let stranger = Authority::create(
        "test.example.com".parse().unwrap(),
        &Validity::days(2).unwrap(),
    )
    .unwrap();
    let forged = secure_target(&stranger).await;
    let request = format!(
        "GET /client/a1/https/{}/ HTTP/1.1\r\nHOST\r\nConnection: close\r\n\r\n",
        forged.addr
    );
    let answer = mesh.ask(forged.addr, &request).await;
    assert!(answer.starts_with("HTTP/1.1 502 "), "{answer}");
    assert!(
        answer.contains("x-mesh-error: unreachable\r\n") && answer.contains("upstream_ca"),
        "{answer}"
    );
    mesh.stop().await;
}
