//! A name is good everywhere or nowhere.

use anyhow::ensure;
use mesh_proto::wire::ALPN_AGENT;
use mesh_tests::fleet::{Bystander, Node, agent_config, http_ingress};
use mesh_tests::hostile::careless_tls;
use mesh_tests::{Result, binary, http, logs, web};

use crate::support::{CLUSTER, refusal_line, refused};

/// Names that break the rule, and a word of the rule that the refusal must tell.
fn odd_names() -> Vec<(String, &'static str)> {
    vec![
        ("a/b".into(), "not allowed"),
        ("a.b".into(), "not allowed"),
        ("../ca".into(), "not allowed"),
        ("a".repeat(64), "64 bytes"),
        ("a".repeat(100), "100 bytes"),
        ("a_b".into(), "not allowed"),
        ("a b".into(), "not allowed"),
        ("A1".into(), "upper case"),
        ("a1-".into(), "begins or ends with '-'"),
        ("a%2fb".into(), "not allowed"),
        ("a\u{e4}".into(), "not allowed"),
        ("a\n".into(), "not allowed"),
        (String::new(), "empty"),
    ]
}

/// A name is good everywhere or nowhere: for `certs`, in a handshake, in a config and in a path.
#[tokio::test]
async fn odd_agent_names() -> Result {
    let logs = logs::capture();
    let good = ["a", "0", "x--y", "123-abc", &"z".repeat(63)];
    let dir = tempfile::tempdir()?;
    binary::must(
        dir.path(),
        &["certs", "init", "--cluster", CLUSTER, "--dir", "."],
    )?;
    binary::must(dir.path(), &["certs", "issue", "proxy", "p1", "--dir", "."])?;
    let config_of = |agent: &str| {
        let agent = serde_json::Value::from(agent);
        format!(
            "role = \"proxy\"\nname = \"p1\"\ncluster = \"{CLUSTER}\"\n\
             [tls]\nca = \"ca.pem\"\ncert = \"p1.pem\"\nkey = \"p1.key\"\n\
             [[ingress]]\nkind = \"tcp\"\nlisten = \"127.0.0.1:0\"\ntarget = \"127.0.0.1:80\"\nagent = {agent}\n"
        )
    };
    let check = |agent: &str| {
        std::fs::write(dir.path().join("node.toml"), config_of(agent))?;
        binary::run(dir.path(), &["config", "check", "--config", "node.toml"])
    };

    let echo = web::start().await?;
    let bystander =
        Bystander::start_with(|config| config.ingresses.push(http_ingress()), |_| {}).await?;
    let proxy = &bystander.pair.proxy;
    let http = proxy.ingress(1)?;

    for (name, rule) in odd_names() {
        // `--` keeps a name from being read as a flag.
        let files = std::fs::read_dir(dir.path())?.count();
        let issue = ["certs", "issue", "--dir", ".", "--", "agent", &name];
        let output = binary::run(dir.path(), &issue)?;
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(
            output.status.code() == Some(2) && stderr.contains(rule),
            "issue {name:?}: {stderr}"
        );
        ensure!(
            std::fs::read_dir(dir.path())?.count() == files,
            "issue {name:?} wrote a file"
        );

        // A tcp ingress names an agent; a name with a dot would be of another cluster.
        let rule_of_ref = if name.contains('.') {
            "is not an agent"
        } else {
            rule
        };
        let output = check(&name)?;
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(
            output.status.code() == Some(2)
                && stderr.contains("node.toml:12: ingress[0].agent: ")
                && stderr.contains(rule_of_ref),
            "config {name:?}: {stderr}"
        );

        // An authority's key in the hands of another tool.
        if name.is_ascii() {
            let uri = format!("spiffe://{CLUSTER}/agent/{name}");
            let minted = bystander.pair.pki.mint(&[&uri], &[])?;
            let (tls, _) = careless_tls(Some(minted), &[ALPN_AGENT])?;
            let refused = refused(&bystander, tls, "bad_certificate").await?;
            let line = refusal_line(&logs, refused.local).await?;
            // A slash makes a path of another shape.
            let rule = if name.contains('/') {
                "is not of the form"
            } else {
                rule
            };
            ensure!(
                line["level"] == "WARN" && line.to_string().contains(rule),
                "handshake {name:?}: {line}"
            );
        }

        let escaped: String = name.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let answer = http::get(http, &format!("/client/{escaped}/http/{}/", echo.addr)).await?;
        ensure!(
            answer.status == 400 && answer.mesh_error() == "bad_target",
            "path {name:?}: {} {}",
            answer.status,
            answer.text()
        );
    }
    // An empty name, unescaped.
    let answer = http::get(http, &format!("/client//http/{}/", echo.addr)).await?;
    ensure!(answer.status == 400, "{}", answer.text());
    // Nobody of those was taken for an agent.
    ensure!(
        proxy.as_proxy()?.sessions().len() == 1,
        "a session of an odd name"
    );

    for name in good {
        binary::must(dir.path(), &["certs", "issue", "agent", name, "--dir", "."])?;
        let output = check(name)?;
        ensure!(
            output.status.success(),
            "{name}: {}",
            String::from_utf8_lossy(&output.stderr)
        );

        let config = agent_config(
            &bystander.pair.pki,
            name,
            &[proxy.quic_addr()?],
            &[echo.rule()],
        )?;
        let agent = Node::agent(config).await?;
        proxy.sessions(2).await?;
        for written in [name.to_owned(), format!("{name}.{CLUSTER}")] {
            let answer = http::get(http, &format!("/client/{written}/http/{}/", echo.addr)).await?;
            ensure!(answer.status == 200, "{written}: {}", answer.text());
        }
        agent.stop().await;
        proxy.sessions(1).await?;
    }
    bystander.check().await?;
    bystander.stop().await;
    Ok(())
}
