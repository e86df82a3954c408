//! Users who administer a proxy by QUIC, and what grants let them do.

use anyhow::{Context as _, ensure};
use certs::Kind;
use mesh_proto::refusal::Reason;
use mesh_proto::wire::{ALPN_USER, Answer, Open, OpenAdmin};
use mesh_tests::fleet::{Node, proxy_config};
use mesh_tests::pki::Pki;
use mesh_tests::quic::{self, Raw};
use mesh_tests::{Result, probe};
use node::report::{Status, Tunnels};

use crate::support::Site;

const CONFIG: &str = "drain_notice = \"20s\"\ndrain_deadline = \"25s\"\n\
    [store]\nurl = \"redb:store.redb\"\n\
    [[grant]]\nwho = [\"user:alice\"]\nmay = [\"tunnel\"]\n\
    [[grant]]\nwho = [\"user:carol\"]\nmay = [\"admin\"]\n";

#[test]
fn grants_say_who_may_do_what() -> Result {
    let mut site = Site::new(&["alice", "bob", "carol"])?;
    site.start(CONFIG)?;

    // Every user may look.
    for user in ["alice", "bob", "carol"] {
        let (status, _) = site.node_as(user, &["status", "--json"], 0)?;
        let status: Status = serde_json::from_str(&status)?;
        ensure!(
            status.name == "proxy-1" && status.problems.is_empty(),
            "{status:?}"
        );
        site.node_as(user, &["peers"], 0)?;
        let (_, error) = site.node_as(user, &["routes", "nobody"], 1)?;
        ensure!(error.contains("no proxy holds the agent nobody"), "{error}");
        site.node_as(user, &["tunnel", "ls"], 0)?;
    }

    // To change something takes a grant, of that right and no other.
    let upsert = ["tunnel", "upsert", "b.example.com", "10.0.0.4"];
    let delete = ["tunnel", "del", "b.example.com"];
    for user in ["bob", "carol"] {
        for args in [&upsert[..], &delete] {
            let (_, error) = site.node_as(user, args, 1)?;
            let grant = format!("[[grant]] who = [\"user:{user}\"], may = [\"tunnel\"]");
            ensure!(
                error.contains(&format!("user:{user} may not change tunnels"))
                    && error.contains(&grant),
                "{error}"
            );
        }
    }
    for user in ["alice", "bob"] {
        for args in [&["drain"][..], &["drain", "--cancel"]] {
            let (_, error) = site.node_as(user, args, 1)?;
            ensure!(
                error.contains(&format!("user:{user} may not operate this proxy")),
                "{error}"
            );
        }
    }
    let (list, _) = site.node(&["tunnel", "ls", "--json"], 0)?;
    let list: Tunnels = serde_json::from_str(&list)?;
    ensure!(list.tunnels.is_empty(), "{list:?}");

    let (text, _) = site.node_as("alice", &upsert, 0)?;
    ensure!(text.contains("created"), "{text}");
    let (_, error) = site.node_as("alice", &[&upsert[..], &["--revision", "0"]].concat(), 1)?;
    ensure!(error.contains("somebody else has just changed"), "{error}");
    let (text, _) = site.node_as("alice", &delete, 0)?;
    ensure!(text.contains("deleted"), "{text}");
    let (_, error) = site.node_as("alice", &delete, 1)?;
    ensure!(
        error.contains("there is no tunnel to b.example.com"),
        "{error}"
    );
    let log = site.log();
    let logged = |parts: &[&str]| {
        log.lines()
            .any(|line| parts.iter().all(|part| line.contains(part)))
    };
    ensure!(
        logged(&[
            "a tunnel was changed",
            "user:alice",
            "upsert",
            "before=\"-\"",
            "10.0.0.4:7443"
        ]),
        "{log}"
    );
    ensure!(
        logged(&[
            "a tunnel was changed",
            "user:alice",
            "delete",
            "after=\"-\""
        ]),
        "{log}"
    );
    ensure!(
        logged(&["audit", "refused", "user:bob", "right=tunnel"]),
        "{log}"
    );

    // A drain, and back: also while the proxy tells users to go elsewhere.
    site.node_as("carol", &["drain"], 0)?;
    let (status, _) = site.node_as("bob", &["status"], 0)?;
    ensure!(status.contains(" is notice"), "{status}");
    site.node_as("carol", &["drain", "--cancel"], 0)?;
    let (status, _) = site.node_as("bob", &["status"], 0)?;
    ensure!(status.contains(" is serving"), "{status}");
    site.node_as("carol", &["drain", "--wait", "--deadline", "1s"], 0)?;
    let mut process = site.process.take().context("it ran")?;
    ensure!(process.wait()?.code() == Some(0), "{}", process.log());
    ensure!(process.log().contains("user:carol"), "{}", process.log());
    Ok(())
}

#[test]
fn where_verbs_go_is_what_was_said_last() -> Result {
    let mut site = Site::new(&["alice"])?;
    site.start(CONFIG)?;
    let (quic, admin) = (site.quic.to_string(), format!("http://{}", site.admin));
    let upsert = ["tunnel", "upsert", "b.example.com", "10.0.0.4"];
    let nowhere = ("MESH_ADMIN", "http://127.0.0.1:1");
    let proxy = [
        ("MESH_PROXY", quic.as_str()),
        ("MESH_IDENTITY", "alice.pem"),
    ];
    let as_whom = |expected: &str| -> Result {
        let log = site.log();
        let line = log
            .lines()
            .rfind(|line| line.contains("a tunnel was changed"));
        ensure!(
            line.is_some_and(|line| line.contains(expected)),
            "{expected}: {line:?}"
        );
        Ok(())
    };
    site.node_with(&proxy, &upsert, 0)?;
    as_whom("user:alice")?;
    site.node_with(
        &[&proxy[..], &[("MESH_ADMIN", &admin)]].concat(),
        &upsert,
        0,
    )?;
    as_whom("admin listener")?;
    let flags = ["--proxy", &quic, "--identity", "alice.pem"];
    site.node_with(&[nowhere], &[&upsert[..], &flags].concat(), 0)?;
    as_whom("user:alice")?;
    let (flags, more) = (["--identity", "alice.pem"], [nowhere, proxy[0]]);
    site.node_with(&more, &[&upsert[..], &flags].concat(), 0)?;
    as_whom("user:alice")?;
    site.node_with(&proxy, &[&upsert[..], &["--admin", &admin]].concat(), 0)?;
    as_whom("admin listener")?;
    site.node_with(&[nowhere], &upsert, 1)?;

    // It would be chance which one drains.
    let two = format!("{quic},127.0.0.1:9");
    let (_, error) = site.node_with(&[("MESH_PROXY", &two), proxy[1]], &["drain"], 2)?;
    ensure!(error.contains("name one"), "{error}");
    site.node_with(&[("MESH_PROXY", &two), proxy[1]], &["status"], 0)?;
    // A proxy that is not there, and one of another authority.
    let (_, error) = site.node_with(
        &[],
        &[
            "status",
            "--proxy",
            "127.0.0.1:9",
            "--identity",
            "alice.pem",
        ],
        1,
    )?;
    ensure!(error.contains("no node answers at 127.0.0.1:9"), "{error}");
    let other = Site::new(&["alice"])?;
    let flags = ["status", "--proxy", &quic, "--identity", "alice.pem"];
    let (_, error) = other.node_with(&[], &flags, 1)?;
    ensure!(error.contains("do not trust each other"), "{error}");
    // An agent's certificate is no user's.
    let (_, error) = site.node_with(
        &[],
        &["status", "--proxy", &quic, "--identity", "proxy-1.pem"],
        2,
    )?;
    ensure!(error.contains("takes a user's"), "{error}");
    site.stop()
}

async fn answer(mut recv: quinn::RecvStream) -> Result<String> {
    Ok(String::from_utf8_lossy(&recv.read_to_end(1 << 20).await?).into_owned())
}

/// One request on a stream of its own, as it is.
async fn raw(user: &Raw, request: &[u8]) -> Result<String> {
    let (opened, mut send, recv) =
        quic::ask(&user.connection, &Open::Admin(OpenAdmin::default())).await?;
    ensure!(matches!(opened, Answer::Opened(_)), "{opened:?}");
    // It may be refused before all of it is there.
    let _ = send.write_all(request).await;
    answer(recv).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_of_bad_manners_end() -> Result {
    let pki = Pki::new("a.example.com")?;
    let proxy = Node::proxy(proxy_config(&pki, "proxy-1")?).await?;
    let user = quic::connect(
        proxy.quic_addr()?,
        &*pki.issue(Kind::User, "bob")?,
        ALPN_USER,
    )
    .await?;
    let get = b"GET /api/v1/status HTTP/1.1\r\nHost: x\r\n\r\n";
    // One request a stream, and then its end.
    let twice = raw(&user, &[&get[..], get].concat()).await?;
    ensure!(
        twice.starts_with("HTTP/1.1 200") && twice.matches("HTTP/1.1").count() == 1,
        "{twice}"
    );
    for (request, status) in [
        (&b"\x00\x01\x02\x03\r\n\r\n"[..], "400"),
        (b"GET /api/v1/nothing HTTP/1.1\r\nHost: x\r\n\r\n", "404"),
        (b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n", "404"),
        (b"PATCH /api/v1/tunnels/b.example.com HTTP/1.1\r\nHost: x\r\n\r\n", "405"),
        (b"PUT /api/v1/tunnels/b.example.com HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}", "403"),
        (b"DELETE /api/v1/tunnels/%2e%2e HTTP/1.1\r\nHost: x\r\n\r\n", "403"),
        (b"POST /api/v1/drain HTTP/1.1\r\nHost: x\r\nX-Mesh-Principal: user:root\r\nContent-Length: 2\r\n\r\n{}", "403"),
        (b"DELETE /api/v1/drain HTTP/1.1\r\nHost: x\r\n\r\n", "403"),
    ] {
        let told = raw(&user, request).await?;
        ensure!(
            told.starts_with(&format!("HTTP/1.1 {status}")),
            "{}: {told}",
            String::from_utf8_lossy(request)
        );
    }
    let long = [
        b"GET /".as_slice(),
        &vec![b'a'; 200 << 10],
        b" HTTP/1.1\r\n\r\n",
    ]
    .concat();
    let told = raw(&user, &long).await?;
    ensure!(told.starts_with("HTTP/1.1 4"), "{told}");
    ensure!(
        proxy.as_proxy()?.status().state == "serving",
        "nobody has drained it"
    );

    // Who asks for nothing keeps nobody from leaving, and is cut.
    let (_, _send, silent) =
        quic::ask(&user.connection, &Open::Admin(OpenAdmin::default())).await?;
    proxy.stop().await;
    let _ = answer(silent).await;
    probe::until("the connection has ended", || {
        user.connection.close_reason().is_some()
    })
    .await
}

/// Each answer that nobody reads is kept in memory: there are few of them, of one connection and of
/// all, and those that end make room.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_nobody_reads_is_bounded() -> Result {
    let pki = Pki::new("a.example.com")?;
    let proxy = Node::proxy(proxy_config(&pki, "proxy-1")?).await?;
    let bob = pki.issue(Kind::User, "bob")?;
    let connect = async || quic::connect(proxy.quic_addr()?, &bob, ALPN_USER).await;
    let ask =
        async |user: &Raw| quic::ask(&user.connection, &Open::Admin(OpenAdmin::default())).await;
    let refused = |answer: Answer, what: &str| -> Result {
        let Answer::Refused(refused) = answer else {
            anyhow::bail!("{answer:?}");
        };
        ensure!(
            refused.reason == Reason::Overloaded && refused.message.contains(what),
            "{refused:?}"
        );
        Ok(())
    };
    let mut users = Vec::new();
    let mut open = Vec::new();
    for _ in 0..8 {
        let user = connect().await?;
        for _ in 0..4 {
            let (answer, send, recv) = ask(&user).await?;
            ensure!(matches!(answer, Answer::Opened(_)), "{answer:?}");
            open.push((send, recv));
        }
        refused(ask(&user).await?.0, "this connection has 4 requests")?;
        users.push(user);
    }
    let more = connect().await?;
    refused(ask(&more).await?.0, "this proxy answers 32 requests")?;
    // The listener is not for users, and has its own way.
    ensure!(proxy.as_proxy()?.status().state == "serving");

    // One that is answered makes room, for its own connection and for others.
    let (mut send, mut recv) = open.pop().context("the last one")?;
    send.write_all(b"GET /api/v1/status HTTP/1.1\r\nHost: x\r\n\r\n")
        .await?;
    let told = recv.read_to_end(1 << 20).await?;
    ensure!(told.starts_with(b"HTTP/1.1 200"), "{told:?}");
    probe::eventually("there is room again", async || {
        let (answer, send, recv) = ask(&more).await?;
        ensure!(matches!(answer, Answer::Opened(_)), "{answer:?}");
        drop((send, recv));
        Ok(())
    })
    .await?;
    // So does one whose user has gone.
    users.clear();
    open.clear();
    probe::eventually("others are served", async || {
        raw(&more, b"GET /api/v1/status HTTP/1.1\r\nHost: x\r\n\r\n")
            .await
            .map(drop)
    })
    .await?;
    proxy.stop().await;
    Ok(())
}

/// Agents and proxies are not users.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_users_administer() -> Result {
    let pki = Pki::new("a.example.com")?;
    let proxy = Node::proxy(proxy_config(&pki, "proxy-1")?).await?;
    let agent = quic::agent(proxy.quic_addr()?, &*pki.issue(Kind::Agent, "a1")?).await?;
    let (answer, _, _) =
        quic::ask(&agent.raw.connection, &Open::Admin(OpenAdmin::default())).await?;
    let Answer::Refused(refused) = answer else {
        anyhow::bail!("{answer:?}");
    };
    ensure!(refused.reason == Reason::Unsupported, "{refused:?}");
    proxy.stop().await;
    Ok(())
}
