//! The model of TCP, of Unix sockets and of names, without nodes.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use mesh_tests::Result;
use mesh_tests::sim::{Answer, Link, Service, echoes, run};
use node::net::Network as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::{Instant, timeout};

const MS: Duration = Duration::from_millis(1);

#[test]
fn tcp_connects_is_refused_and_times_out() -> Result {
    run("tcp_connects_is_refused_and_times_out", 1, async |world| {
        let (client, server) = (
            world.net().add_host("client"),
            world.net().add_host("server"),
        );
        let echo = world.serve(server, 7, Service::Echo)?;
        let started = Instant::now();
        let socket = world.connect(client, echo.address).await?;
        assert_eq!(started.elapsed(), 20 * MS, "one round trip");
        assert_eq!(socket.peer_addr(), Some(echo.address));
        drop(socket);

        let kind = |error: anyhow::Error| error.downcast::<std::io::Error>().unwrap().kind();
        let closed = SocketAddr::new(echo.address.ip(), 8);
        let refused = world.connect(client, closed).await.unwrap_err();
        assert_eq!(kind(refused), std::io::ErrorKind::ConnectionRefused);
        let nobody = world
            .connect(client, "192.0.2.1:7".parse()?)
            .await
            .unwrap_err();
        assert_eq!(kind(nobody), std::io::ErrorKind::HostUnreachable);

        world.net().kill(server);
        let started = Instant::now();
        let silence = world.connect(client, echo.address).await.unwrap_err();
        assert_eq!(kind(silence), std::io::ErrorKind::TimedOut);
        assert!(started.elapsed() > 120_000 * MS);
        Ok(())
    })
}

#[test]
fn tcp_half_closes_resets_and_pushes_back() -> Result {
    run("tcp_half_closes_resets_and_pushes_back", 1, async |world| {
        let (client, server) = (
            world.net().add_host("client"),
            world.net().add_host("server"),
        );
        world
            .net()
            .set_default_link(Link::latency(10 * MS).lossy(0.1).jittery(5 * MS));
        let sink = world.serve(server, 1, Service::Sink)?;
        let mut socket = world.connect(client, sink.address).await?;
        let bytes = mesh_tests::services::pattern(0, 1 << 20);
        socket.write_all(&bytes).await?;
        socket.shutdown().await?;
        let mut answer = String::new();
        socket.read_to_string(&mut answer).await?;
        assert_eq!(
            answer,
            mesh_tests::services::Checksum::of(&bytes).to_string()
        );
        drop(socket);
        world
            .until("the service is rid of it", |_| sink.stats.open() == 0)
            .await?;

        // A reset is seen as one.
        let echo = world.serve(server, 2, Service::Echo)?;
        let socket = world.connect(client, echo.address).await?;
        socket.set_reset_on_close(true);
        drop(socket);
        world
            .until("the service is rid of it", |_| echo.stats.open() == 0)
            .await?;

        // Nobody reads: the writer is held up with a bounded number of bytes.
        let silent = world.serve(server, 3, Service::Silent)?;
        let mut socket = world.connect(client, silent.address).await?;
        let mut written = 0;
        while let Ok(more) = timeout(10_000 * MS, socket.write(&bytes)).await {
            written += more?;
        }
        assert_eq!(written, 256 << 10);

        // A cut holds bytes up; a killed host makes the writer give up, a restarted one resets.
        let mut socket = world.connect(client, echo.address).await?;
        world.net().cut(client, server);
        socket.write_all(b"late").await?;
        world.run_for(5_000 * MS).await;
        world.net().heal(client, server);
        let mut back = [0; 4];
        socket.read_exact(&mut back).await?;
        assert_eq!(&back, b"late");
        world.net().kill(server);
        socket.write_all(b"lost").await?;
        world.run_for(1_000 * MS).await;
        world.net().revive(server);
        let error = socket.read_exact(&mut back).await.unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
        Ok(())
    })
}

#[test]
fn loopback_and_unix_sockets_stay_on_their_host() -> Result {
    run(
        "loopback_and_unix_sockets_stay_on_their_host",
        1,
        async |world| {
            let (own, other) = (world.net().add_host("own"), world.net().add_host("other"));
            let path = Path::new("/run/echo.sock");
            world.serve_unix(own, path, Service::Echo)?;
            let echo = world.serve(own, 7, Service::Echo)?;
            echoes(world.connect(own, echo.address).await?, b"near").await?;
            echoes(
                world.net().network(own).connect_unix(path).await?,
                b"nearer",
            )
            .await?;
            assert!(world.net().network(other).connect_unix(path).await.is_err());
            let loopback = SocketAddr::new("127.0.0.1".parse()?, 7);
            assert!(world.connect(other, loopback).await.is_err());
            Ok(())
        },
    )
}

#[test]
fn names_have_several_addresses_change_and_fail() -> Result {
    run(
        "names_have_several_addresses_change_and_fail",
        1,
        async |world| {
            let net = world.net().clone();
            let network = net.network(net.add_host("a"));
            let ips: Vec<IpAddr> = vec!["10.0.0.1".parse()?, "fd00::1".parse()?];
            net.set_name("lb.example.com", Answer::Addresses(ips.clone()));
            let found = network.resolve("LB.example.com", 7443).await?;
            assert_eq!(
                found,
                [SocketAddr::new(ips[0], 7443), SocketAddr::new(ips[1], 7443)]
            );
            net.set_name("lb.example.com", Answer::Rotated(ips.clone()));
            let mut firsts = BTreeMap::new();
            for _ in 0..4 {
                let first = network.resolve("lb.example.com", 1).await?[0].ip();
                *firsts.entry(first).or_insert(0) += 1;
            }
            assert!(firsts.values().eq(&[2, 2]), "{firsts:?}");
            for answer in [
                Answer::Empty,
                Answer::Failure,
                Answer::Addresses(Vec::new()),
            ] {
                net.set_name("lb.example.com", answer);
                assert!(network.resolve("lb.example.com", 1).await.is_err());
            }
            assert!(network.resolve("nobody.example.com", 1).await.is_err());
            net.set_name("lb.example.com", Answer::Silence);
            assert!(
                timeout(60_000 * MS, network.resolve("lb.example.com", 1))
                    .await
                    .is_err()
            );
            assert_eq!(net.questions("lb.example.com"), 9);
            Ok(())
        },
    )
}
