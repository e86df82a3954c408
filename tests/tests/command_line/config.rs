//! `node config`, `--set`, the environment.

use std::process::Command;

use anyhow::{Context as _, ensure};
use mesh_tests::{Result, binary};

use crate::support::{Site, exits, judged};

/// All that is wrong is told at once: where it stands, which key, what to do.
#[test]
fn all_errors_come_at_once() -> Result {
    let site = Site::new()?;
    let lines = [
        ("role = \"proxy\"", ""),
        ("name = \"Proxy_1\"", "name"),
        ("colour = \"blue\"", "colour"),
        ("[tls]", ""),
        ("ca = \"ca.pem\"", ""),
        ("cert = \"missing.pem\"", "tls.cert"),
        ("key = \"proxy-1.key\"", ""),
        ("[quic]", ""),
        ("stream_window = \"8MiB\"", "quic.stream_window"),
        ("keepalive = 5", "quic.keepalive"),
        ("handshake_timeout = \"soon\"", "quic.handshake_timeout"),
        ("congestion = \"reno\"", "quic.congestion"),
        ("[[ingress]]", ""),
        ("kind = \"http\"", ""),
        ("listen = \"0.0.0.0:8123\"", "ingress[0].listen"),
        ("[[ingress]]", ""),
        ("kind = \"tcp\"", ""),
        ("listen = \"127.0.0.1:8124\"", ""),
        ("agent = \"a/b\"", "ingress[1].agent"),
        ("target = \"127.1:80\"", "ingress[1].target"),
        ("[[ingress]]", ""),
        ("kind = \"socks5\"", "ingress[2].kind"),
        ("[log]", ""),
        ("level = \"loud\"", "log.level"),
    ];
    let text: Vec<&str> = lines.iter().map(|(line, _)| *line).collect();
    std::fs::write(site.path().join("bad.toml"), text.join("\n"))?;
    let (said, errors) = exits(site.path(), &["config", "check", "--config", "bad.toml"], 2)?;
    ensure!(said.is_empty(), "{said}");
    for (index, (line, key)) in lines.iter().enumerate() {
        let place = format!("bad.toml:{}: ", index + 1);
        let told = errors.lines().find(|error| error.starts_with(&place));
        match (key.is_empty(), told) {
            (true, None) => {}
            (false, Some(told)) => ensure!(told.contains(key), "{line}: {told}"),
            // A missing key is told at its table.
            (true, Some(_)) if line.starts_with('[') => {}
            (_, told) => anyhow::bail!("{line}: {told:?} of\n{errors}"),
        }
    }
    // A node does not start from it, and says the same.
    let (_, same) = exits(site.path(), &["--config", "bad.toml"], 2)?;
    for error in errors.lines().filter(|line| line.starts_with("bad.toml")) {
        ensure!(same.contains(error), "{error} is not in\n{same}");
    }
    Ok(())
}

/// Flags win over the environment, which wins over the file; and what counts can be seen.
#[test]
fn layers_override_each_other() -> Result {
    let site = Site::new()?;
    std::fs::write(
        site.path().join("node.toml"),
        site.proxy_config("1s", "20s", ""),
    )?;
    let show = |env: &[(&str, &str)], args: &[&str]| {
        let mut command = Command::new(binary::path()?);
        command
            .current_dir(site.path())
            .args(["config", "show", "--config", "node.toml"]);
        let output = command.args(args).envs(env.iter().copied()).output()?;
        judged(&output, 0)
    };
    let (file, _) = show(&[], &[])?;
    for line in [
        "name = \"proxy-1\"",
        "drain_notice = \"1s\"",
        "drain_deadline = \"20s\"",
        "generation = 0",
        "handshakes_per_second = 200",
        "level = \"info\"",
    ] {
        ensure!(file.contains(line), "{line} is not in\n{file}");
    }
    let env = [
        ("MESH__PROXY__GENERATION", "7"),
        ("MESH__LOG__LEVEL", "debug"),
        ("MESH_ADMIN", "no config"),
    ];
    let (by_env, _) = show(&env, &[])?;
    ensure!(
        by_env.contains("generation = 7") && by_env.contains("level = \"debug\""),
        "{by_env}"
    );
    let flags = [
        "--set",
        "proxy.generation=8",
        "--set",
        "quic.advertise=[\"192.0.2.1:7443\"]",
        "--set",
        "quic.peer_advertise=192.0.2.2:7443",
    ];
    let (by_flag, warnings) = show(&env, &flags)?;
    ensure!(
        by_flag.contains("generation = 8") && by_flag.contains("level = \"debug\""),
        "{by_flag}"
    );
    ensure!(
        by_flag.contains("advertise = [\"192.0.2.1:7443\"]"),
        "{by_flag}"
    );
    ensure!(
        by_flag.contains("peer_advertise = \"192.0.2.2:7443\""),
        "{by_flag}"
    );
    ensure!(warnings.is_empty(), "{warnings}");

    // What is shown is itself a config, to the same effect, wherever it lies.
    let elsewhere = tempfile::tempdir()?;
    std::fs::write(elsewhere.path().join("shown.toml"), &file)?;
    let (said, _) = exits(
        elsewhere.path(),
        &["config", "check", "--config", "shown.toml"],
        0,
    )?;
    ensure!(
        said.contains("spiffe://test.example.com/proxy/proxy-1"),
        "{said}"
    );
    let (again, _) = exits(
        elsewhere.path(),
        &["config", "show", "--config", "shown.toml"],
        0,
    )?;
    ensure!(again == file, "{again}\nis not\n{file}");

    // Each layer's mistakes are told with its own name.
    let mut command = Command::new(binary::path()?);
    command
        .current_dir(site.path())
        .env("MESH__QUIC__KEEPALIVE", "often");
    command.args([
        "config",
        "check",
        "--config",
        "node.toml",
        "--set",
        "proxy.colour=blue",
    ]);
    let (_, errors) = judged(&command.output()?, 2)?;
    ensure!(errors.contains("MESH__QUIC__KEEPALIVE: "), "{errors}");
    ensure!(errors.contains("--set proxy.colour"), "{errors}");
    Ok(())
}

/// A node needs no file at all.
#[test]
fn flags_alone_will_do() -> Result {
    let site = Site::new()?;
    let files = [
        "--set",
        "tls.ca=ca.pem",
        "--set",
        "tls.cert=a1.pem",
        "--set",
        "tls.key=a1.key",
    ];
    let args = [
        &[
            "config",
            "check",
            "--role",
            "agent",
            "--set",
            "agent.proxies=127.0.0.1:7443",
        ],
        &files[..],
    ]
    .concat();
    exits(site.path(), &args, 0)?;
    let (_, errors) = exits(site.path(), &["--role", "agent"], 2)?;
    for key in ["tls: ", "agent.proxies: "] {
        ensure!(errors.contains(key), "{key} is not in\n{errors}");
    }
    // A certificate of another kind than the role.
    let args = [&["config", "check", "--role", "proxy"], &files[..]].concat();
    let (_, errors) = exits(site.path(), &args, 2)?;
    ensure!(
        errors.contains("agent") && errors.contains("proxy"),
        "{errors}"
    );
    Ok(())
}

/// Who may use a listener that others can reach is said in so many words.
#[test]
fn exposed_listeners_need_auth() -> Result {
    let site = Site::new()?;
    std::fs::write(site.path().join("tokens"), "ci:a-token-of-24-characters\n")?;
    let check = |ingress: &str, code| {
        let config = format!(
            "role = \"proxy\"\n[tls]\nca = \"ca.pem\"\ncert = \"proxy-1.pem\"\nkey = \"proxy-1.key\"\n{ingress}"
        );
        std::fs::write(site.path().join("node.toml"), config)?;
        exits(
            site.path(),
            &["config", "check", "--config", "node.toml"],
            code,
        )
    };
    let http = "[[ingress]]\nkind = \"http\"\nlisten = \"0.0.0.0:8123\"\n";
    let tcp =
        "[[ingress]]\nkind = \"tcp\"\nlisten = \"[::]:8123\"\nagent = \"a1\"\ntarget = \"h:1\"\n";
    for ingress in [http, tcp] {
        let (_, errors) = check(ingress, 2)?;
        ensure!(
            errors.contains("nothing says who may use it") && errors.contains("open = true"),
            "{errors}"
        );
        let (_, warnings) = check(&format!("{ingress}open = true\n"), 0)?;
        ensure!(warnings.contains("everybody who reaches"), "{warnings}");
    }
    check(&format!("{http}auth = {{ tokens_file = \"tokens\" }}\n"), 0)?;
    let (_, errors) = check(&format!("{tcp}auth = {{ tokens_file = \"tokens\" }}\n"), 2)?;
    ensure!(errors.contains("a raw port carries no token"), "{errors}");
    let (_, errors) = check(&format!("{http}auth = {{ client_ca = \"ca.pem\" }}\n"), 2)?;
    ensure!(errors.contains("needs tls"), "{errors}");
    let (_, errors) = check(
        &format!("{http}open = true\nauth = {{ tokens_file = \"tokens\" }}\n"),
        2,
    )?;
    ensure!(errors.contains("contradicts auth"), "{errors}");
    let (_, errors) = check("[admin]\nlisten = \"0.0.0.0:7480\"\n", 2)?;
    ensure!(errors.contains("admin"), "{errors}");
    Ok(())
}

/// Usage as of any command: help and version are no mistakes.
#[test]
fn usage() -> Result {
    let dir = tempfile::tempdir()?;
    let (help, _) = exits(dir.path(), &["--help"], 0)?;
    for word in ["demo", "certs", "config", "--role", "--set"] {
        ensure!(help.contains(word), "{word} is not in\n{help}");
    }
    let (version, _) = exits(dir.path(), &["--version"], 0)?;
    ensure!(version.starts_with("node "), "{version}");
    for args in [
        &[][..],
        &["fly"],
        &["--fly"],
        &["--role", "king"],
        &["--set", "novalue"],
        &["config"],
    ] {
        exits(dir.path(), args, 2).with_context(|| format!("{args:?}"))?;
    }
    Ok(())
}
