//! Bytes, ends and resets through a forward.

use mesh_tests::Result;
use mesh_tests::probe;
use mesh_tests::services::{Checksum, Service, echoes, pattern};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixStream};

use super::support::Mesh;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_are_exact_both_ways_and_ends_are_carried_over() -> Result {
    const SIZE: u64 = 24 << 20;
    let (echo, source, sink) = (
        Service::echo().await?,
        Service::source(SIZE).await?,
        Service::sink().await?,
    );
    let mesh = Mesh::start(1, &[echo.rule(), source.rule(), sink.rule()])?;
    let forward = mesh.forward(&[
        &format!("0:a1/{}", echo.addr),
        &format!("127.0.0.1:0:a1.test.example.com/{}", source.addr),
        &format!("[::1]:0:a1/{}", sink.addr),
    ])?;
    let bytes = pattern(0, usize::try_from(SIZE)?);
    // Ends the request, and then gets the reply whole.
    echoes(forward.local(0)?, b"").await?;
    echoes(forward.local(0)?, &bytes[..100_000]).await?;

    let mut stream = TcpStream::connect(forward.local(1)?).await?;
    stream.shutdown().await?;
    let mut read = Vec::new();
    stream.read_to_end(&mut read).await?;
    assert!(read == bytes, "{} bytes came", read.len());

    let local = forward.local(2)?;
    assert!(local.is_ipv6(), "{local}");
    let mut stream = TcpStream::connect(local).await?;
    stream.write_all(&bytes).await?;
    stream.shutdown().await?;
    let mut told = String::new();
    stream.read_to_string(&mut told).await?;
    assert_eq!(told, Checksum::of(&bytes).to_string());

    // Many at once, over the one connection.
    let local = forward.local(0)?;
    let piece = &bytes[..300_000];
    let many: Vec<_> = (0..40).map(|_| echoes(local, piece)).collect();
    for echoed in futures_util::future::join_all(many).await {
        echoed?;
    }
    mesh.no_streams(0).await?;
    forward.stop()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reset_reaches_the_other_end_either_way() -> Result {
    let silent = Service::silent().await?;
    let rude = Service::start(|mut stream, _| async move {
        stream.read_exact(&mut [0; 4]).await?;
        stream.write_all(b"half of it").await?;
        stream.set_zero_linger()?;
        Ok(())
    })
    .await?;
    let mesh = Mesh::start(1, &[silent.rule(), rude.rule()])?;
    let forward = mesh.forward(&[
        &format!("0:a1/{}", silent.addr),
        &format!("0:a1/{}", rude.addr),
    ])?;

    let mut stream = TcpStream::connect(forward.local(0)?).await?;
    stream.write_all(b"hello").await?;
    probe::until("the target has it", || silent.open() == 1).await?;
    stream.set_zero_linger()?;
    drop(stream);
    mesh.no_streams(0).await?;

    // A target that breaks off is not taken for one that has ended.
    let mut stream = TcpStream::connect(forward.local(1)?).await?;
    stream.write_all(b"well").await?;
    let error = stream.read_to_end(&mut Vec::new()).await.expect_err("cut");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    mesh.no_streams(0).await?;
    forward.stop()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unix_sockets_on_both_ends() -> Result {
    let mesh_dir = tempfile::tempdir()?;
    let target = mesh_dir.path().join("target.sock");
    let listener = tokio::net::UnixListener::bind(&target)?;
    let served = tokio::spawn(async move {
        for _ in 0..2 {
            let (mut stream, _) = listener.accept().await?;
            let (mut read, mut write) = stream.split();
            tokio::io::copy(&mut read, &mut write).await?;
            write.shutdown().await?;
        }
        std::io::Result::Ok(())
    });
    let target = target.display().to_string();
    let mesh = Mesh::start(1, &[format!("unix:{target}")])?;
    let local = mesh_dir.path().join("local.sock");
    let written = format!("unix:{}:a1/unix:{target}", local.display());
    // A socket that a killed program has left behind is in nobody's way.
    drop(std::os::unix::net::UnixListener::bind(&local)?);
    for _ in 0..2 {
        let forward = mesh.forward(&[&written])?;
        let mut stream = UnixStream::connect(&local).await?;
        stream.write_all(b"by files alone").await?;
        stream.shutdown().await?;
        let mut back = String::new();
        stream.read_to_string(&mut back).await?;
        assert_eq!(back, "by files alone");
        use std::os::unix::fs::PermissionsExt as _;
        let mode = std::fs::metadata(&local)?.permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "nobody else gets in");
        forward.stop()?;
        assert!(!local.exists(), "it cleans up behind itself");
    }
    served.await??;
    Ok(())
}
