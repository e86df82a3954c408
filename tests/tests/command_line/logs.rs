//! What is logged, and what never is.

use anyhow::{Context as _, ensure};
use http::Request;
use http_body_util::Full;
use mesh_tests::binary::{Process, free_port};
use mesh_tests::http::Client;
use mesh_tests::services::{Service, echoes};
use mesh_tests::{Result, web};
use serde_json::Value;

use crate::support::Site;

/// The lines of a log, each of which must be one JSON object.
fn json(process: &Process) -> Result<Vec<Value>> {
    let parse = |line: &str| {
        let value: Value = serde_json::from_str(line).with_context(|| line.to_owned())?;
        ensure!(
            value["timestamp"].is_string() && value["level"].is_string(),
            "{line}"
        );
        Ok(value)
    };
    process.log().lines().map(parse).collect()
}

/// With `format = "json"` every line is an object; each dial and each request has an access line;
/// and neither tokens nor keys nor queries stand anywhere, however much is logged.
#[tokio::test]
async fn json_lines_and_no_secrets() -> Result {
    const TOKEN: &str = "a-token-that-nobody-may-read";
    const PRESENTED: &str = "a-token-that-was-mistyped";
    const QUERY: &str = "of-the-query";
    let site = Site::new()?;
    let (echo, web) = (Service::echo().await?, web::start().await?);
    let tcp = free_port()?;
    std::fs::write(site.path().join("tokens"), format!("ci:{TOKEN}\n"))?;
    let log = "[log]\nlevel = \"debug\"\nformat = \"json\"\n";
    let config = site.proxy_config(
        "0s",
        "10s",
        &format!(
            "auth = {{ tokens_file = \"tokens\" }}\n\
             [[ingress]]\nkind = \"tcp\"\nlisten = \"{tcp}\"\nagent = \"a1\"\ntarget = \"{}\"\n{log}",
            echo.addr
        ),
    );
    let mut proxy = site.start("proxy", &config)?;
    proxy.wait_for_log("proxy started")?;
    let mut agent = site.start("agent", &site.agent_config(log))?;
    proxy.wait_for_log("agent connected")?;

    echoes(tcp, b"through the tcp ingress").await?;
    let path = format!("/client/a1/http/{}/page", web.addr);
    for (token, status) in [(TOKEN, 200), (PRESENTED, 401)] {
        for (name, value) in [
            ("x-mesh-token", token.to_owned()),
            ("authorization", format!("Bearer {token}")),
        ] {
            let request = Request::get(format!("{path}?secret={QUERY}"))
                .header(name, value)
                .header("cookie", "session=of-the-cookie")
                .body(Full::default())?;
            let answer = Client::connect(site.http).await?.ask(request).await?;
            ensure!(answer.status == status, "{}", answer.text());
        }
    }
    for node in [&mut agent, &mut proxy] {
        node.signal("TERM")?;
        ensure!(node.wait()?.code() == Some(0), "{}", node.log());
    }

    let lines = json(&proxy)?;
    json(&agent)?;
    let access = |kind: &str| -> Vec<&Value> {
        let of_kind = |line: &&Value| line["target"] == "access" && line["fields"]["kind"] == kind;
        lines
            .iter()
            .filter(of_kind)
            .map(|line| &line["fields"])
            .collect()
    };
    let by_tcp: Vec<_> = access("dial")
        .into_iter()
        .filter(|line| line["principal"] == format!("ingress:{tcp}"))
        .collect();
    ensure!(by_tcp.len() == 1, "{by_tcp:?}");
    let line = by_tcp[0];
    ensure!(
        line["agent"] == "a1"
            && line["target"] == echo.addr.to_string()
            && line["result"] == "ok"
            && line["path"] == "local"
            && line["sent_bytes"] == 23
            && line["received_bytes"] == 23
            && line["duration_ms"].is_u64(),
        "{line}"
    );
    let requests = access("http");
    ensure!(requests.len() == 4, "{requests:?}");
    for line in &requests {
        ensure!(
            line["method"] == "GET"
                && line["path"] == path
                && line["peer"].is_string()
                && line["complete"] == true
                && line["duration_ms"].is_u64(),
            "{line}"
        );
        // What is asked for is looked at when it is known who asks.
        let served = line["status"] == 200
            && line["principal"] == "token:ci"
            && line["target"] == web.addr.to_string();
        let refused = line["status"] == 401 && line["reason"] == "not_allowed";
        ensure!(served || refused, "{line}");
    }
    ensure!(
        requests.iter().filter(|line| line["status"] == 200).count() == 2,
        "{requests:?}"
    );

    let mut secrets = vec![
        TOKEN.to_owned(),
        PRESENTED.into(),
        QUERY.into(),
        "of-the-cookie".into(),
    ];
    for key in ["ca.key", "proxy-1.key", "a1.key"] {
        let pem = std::fs::read_to_string(site.path().join(key))?;
        secrets.extend(
            pem.lines()
                .filter(|line| !line.starts_with('-'))
                .map(str::to_owned),
        );
    }
    for node in [&proxy, &agent] {
        let log = node.log();
        for secret in &secrets {
            ensure!(!log.contains(secret.as_str()), "`{secret}` was logged");
        }
    }
    Ok(())
}
