//! iperf3 through a `tcp` ingress: a control connection and data connections at once, both ways.
//!
//! Bytes and errors are judged, not speed; the speed is printed (`--nocapture`).

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![expect(clippy::print_stdout, reason = "the speed is for people to read")]

use std::fs;

use anyhow::Context as _;
use mesh_tests::Result;
use mesh_tests::binary::free_port;
use mesh_tests::installation::Installation;
use mesh_tests::programs::{Daemon, command, run};
use serde_json::Value;

const MIB: u64 = 1 << 20;

/// What may be on the way of a stream when iperf3 calls it a day, in bytes: the socket buffers of
/// the four ends of two connections, as large as the kernel lets them grow, and the window of the
/// tunnel's stream.
fn on_the_way() -> Result<u64> {
    let largest = |limits: &str| {
        let limits = fs::read_to_string(format!("/proc/sys/net/ipv4/{limits}"))?;
        let largest = limits.split_whitespace().last().context("no limits")?;
        anyhow::Ok(largest.parse::<u64>()?)
    };
    Ok(2 * (largest("tcp_wmem")? + largest("tcp_rmem")?) + 2 * MIB)
}

fn figure(report: &Value, path: &str) -> Result<f64> {
    let figure = report.pointer(path).and_then(Value::as_f64);
    figure.with_context(|| format!("no {path} in {report:#}"))
}

async fn measure(streams: u64, size: u64, reverse: bool) -> Result {
    let server = free_port()?;
    let mut iperf3 = command("iperf3")?;
    iperf3.args(["-s", "-B", "127.0.0.1", "-p", &server.port().to_string()]);
    let _daemon = Daemon::start(iperf3, server)?;
    let mesh = Installation::tcp(server)?;
    let ingress = mesh.ingress(0)?;
    let mut client = command("iperf3")?;
    client.args(["-c", "127.0.0.1", "-p", &ingress.port().to_string(), "-J"]);
    client.args(["-n", &size.to_string(), "-P", &streams.to_string()]);
    if reverse {
        client.arg("-R");
    }
    let finished = run(&mut client)?.must()?;
    let report: Value = serde_json::from_slice(&finished.stdout)?;
    assert!(report.get("error").is_none(), "{report:#}");
    let ended = report
        .pointer("/end/streams")
        .and_then(Value::as_array)
        .context("no streams")?;
    assert_eq!(ended.len() as u64, streams);
    let sent = figure(&report, "/end/sum_sent/bytes")?;
    let received = figure(&report, "/end/sum_received/bytes")?;
    assert!(sent >= size as f64, "{sent} bytes sent");
    for stream in 0..streams {
        let received = figure(&report, &format!("/end/streams/{stream}/receiver/bytes"))?;
        assert!(received > 0.0, "nothing came through stream {stream}");
    }
    // The client says when it was enough: receiving, when all has come.
    let on_the_way = if reverse { 0 } else { on_the_way()? * streams };
    let least = size.saturating_sub(on_the_way);
    assert!(
        received >= least as f64,
        "{received} bytes received of {sent}, under {least}"
    );
    let [proxy, agent] = mesh.metrics().await?;
    for (node, direction) in [
        (&proxy, if reverse { "received" } else { "sent" }),
        (&agent, if reverse { "sent" } else { "received" }),
    ] {
        let carried = node.get(&format!(
            "mesh_stream_bytes_total{{direction=\"{direction}\"}}"
        ))?;
        assert!(carried >= received, "{carried} bytes carried of {received}");
    }
    println!(
        "{streams} streams {}: {:.0} Mbit/s",
        if reverse { "down" } else { "up" },
        figure(&report, "/end/sum_received/bits_per_second")? / 1e6
    );
    mesh.no_streams().await?;
    mesh.little_memory()?;
    mesh.stop()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn up() -> Result {
    measure(1, 256 * MIB, false).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn down() -> Result {
    measure(1, 256 * MIB, true).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn eight_streams_up() -> Result {
    measure(8, 256 * MIB, false).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn eight_streams_down() -> Result {
    measure(8, 256 * MIB, true).await
}
