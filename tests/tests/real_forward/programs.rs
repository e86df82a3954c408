//! Real programs at a forward.

use mesh_tests::curl::{curled, download, upload};
use mesh_tests::programs::{run, run_fed};
use mesh_tests::sshd::Sshd;
use mesh_tests::{Result, web};

use super::support::Mesh;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn curl_both_ways() -> Result {
    const SIZE: u64 = 32 << 20;
    let web = web::start().await?;
    let mesh = Mesh::start(1, &[web.addr.to_string()])?;
    let forward = mesh.forward(&[&format!("0:a1/{}", web.addr)])?;
    let local = forward.local(0)?;
    let source = format!("http://{local}/source/{SIZE}");
    assert_eq!(download(&[&source])?, (SIZE, web::digest(SIZE)));
    let (told, digest) = upload(&["-T", "-", &format!("http://{local}/sink")], SIZE)?;
    assert_eq!(told.text(), format!("{SIZE} {digest}\n"));
    // A hundred requests, each on a connection of its own.
    let url = format!("http://{local}/source/10#[1-100]");
    curled(&[
        "--no-keepalive",
        "-H",
        "Connection: close",
        "-o",
        "/dev/null",
        &url,
    ])?;
    mesh.no_streams(0).await?;
    forward.stop()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ssh_with_a_command_and_a_pipe() -> Result {
    const SIZE: u64 = 16 << 20;
    let sshd = Sshd::start(None)?;
    let mesh = Mesh::start(1, &[sshd.addr().to_string()])?;
    let forward = mesh.forward(&[&format!("0:a1/{}", sshd.addr())])?;
    let local = forward.local(0)?;
    let told = run(sshd.ssh(local)?.arg("echo out; exit 7"))?;
    assert_eq!((told.code(), told.text().as_str()), (Some(7), "out\n"));
    let told = run_fed(sshd.ssh(local)?.arg("sha256sum"), |stdin| {
        web::pieces(SIZE).try_for_each(|piece| stdin.write_all(&piece))
    })?
    .must()?;
    assert_eq!(told.text(), format!("{}  -\n", web::digest(SIZE)));
    mesh.no_streams(0).await?;
    forward.stop()
}
