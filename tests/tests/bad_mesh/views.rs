//! What proxies tell of proxies.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use mesh_proto::name::Generation;
use mesh_proto::wire::{MEMBERS_MAX, Member};
use mesh_tests::Result;
use mesh_tests::rogue::{Rogue, Serve, encoded, member, serve, tells, view, welcome};

use crate::support::{MINUTE, MS, Mesh, SECOND, lost_to_nobody, scenario};

/// Stands in a frame for a name that could not be encoded.
const STAND_IN: &str = "stand-in";

/// Bytes of the count of a list with 251 to 65,535 entries.
const COUNT_BYTES: usize = 3;
/// Bytes that follow the members in a view that announces nothing.
const TAIL_BYTES: usize = 3;
/// Bytes of a frame's header.
const HEADER_BYTES: usize = 6;

/// The frame of a view of one member, with this text in place of the stand-in.
fn with_text(member: Member, text: &[u8]) -> Result<Vec<u8>> {
    let mut bytes = encoded(&view(vec![member]))?;
    let prefixed = [&[u8::try_from(STAND_IN.len())?], STAND_IN.as_bytes()].concat();
    let at = bytes
        .windows(prefixed.len())
        .position(|window| window == prefixed)
        .context("no stand-in")?;
    let replacement = [&[u8::try_from(text.len())?], text].concat();
    bytes.splice(at..at + prefixed.len(), replacement);
    sized(bytes)
}

/// A frame whose header tells the length that its body has.
fn sized(mut bytes: Vec<u8>) -> Result<Vec<u8>> {
    let body_bytes = u32::try_from(bytes.len() - HEADER_BYTES)?;
    bytes[..4].copy_from_slice(&body_bytes.to_be_bytes());
    Ok(bytes)
}

/// One view of so many members in one frame, which no proxy could encode.
fn in_one_frame(members: &[Member]) -> Result<Vec<u8>> {
    let count = u16::try_from(members.len())?;
    let mut frame = Vec::new();
    let mut entries = Vec::new();
    let mut tail = Vec::new();
    for part in members.chunks(MEMBERS_MAX) {
        // Shorter lists have a shorter count; the test does not make them.
        ensure!(part.len() > 250);
        frame = encoded(&view(part.to_vec()))?;
        let body = &frame[HEADER_BYTES..];
        entries.extend_from_slice(&body[COUNT_BYTES..body.len() - TAIL_BYTES]);
        tail = body[body.len() - TAIL_BYTES..].to_vec();
    }
    frame.truncate(HEADER_BYTES);
    frame.push(0xfb);
    frame.extend_from_slice(&count.to_le_bytes());
    frame.extend(entries);
    frame.extend(tail);
    sized(frame)
}

fn named(member: Member) -> Result<Member> {
    Ok(Member {
        name: STAND_IN.parse()?,
        ..member
    })
}

/// A view that is not a view ends the connection, with a wait before the next one.
#[test]
fn names_that_are_none_end_the_connection() -> Result {
    let name = "names_that_are_none_end_the_connection";
    scenario(name, async |world, log| {
        let cluster = world.cluster();
        let other = member("other", &["10.99.0.1:7443"])?;
        let long = [b'a'; 64];
        let longer = [b'a'; 250];
        let names: [(&str, &[u8]); 8] = [
            ("empty", b""),
            ("overlong", &long),
            ("longest", &longer),
            ("capital", b"Proxy"),
            ("slash", b"a/b"),
            ("dot", b"a.b"),
            ("nul", b"a\0b"),
            ("no-utf8", b"\xff\xfe"),
        ];
        let mut rogues: Vec<(&str, Serve)> = Vec::new();
        for (what, text) in names {
            let bytes = with_text(named(other.clone())?, text)?;
            rogues.push((what, tells(cluster, what, bytes)));
        }
        for (what, text) in [("group-empty", &b""[..]), ("group-odd", b"a group")] {
            let odd = Member {
                group: STAND_IN.parse()?,
                ..other.clone()
            };
            rogues.push((what, tells(cluster, what, with_text(odd, text)?)));
        }
        // Ten thousand in one frame, and as many claimed by a frame that ends there.
        let many = (0..10_000)
            .map(|index| member(&format!("m{index}"), &[]))
            .collect::<Result<Vec<_>>>()?;
        let crowd = in_one_frame(&many)?;
        ensure!(crowd.len() < 256 << 10, "{} bytes", crowd.len());
        let mut claim = crowd[..HEADER_BYTES + COUNT_BYTES].to_vec();
        claim = sized(std::mem::take(&mut claim))?;
        rogues.push(("crowd", tells(cluster, "crowd", crowd)));
        rogues.push(("claim", tells(cluster, "claim", claim)));
        let whats: Vec<String> = rogues.iter().map(|(what, _)| (*what).to_owned()).collect();

        let mesh = Mesh::with(world, rogues).await?;
        mesh.live(world, 4 * MINUTE).await?;
        let mut ended = 0;
        for (what, rogue) in whats.iter().zip(&mesh.rogues) {
            let why = match what.as_str() {
                "group-empty" | "group-odd" => "group \\\"",
                "no-utf8" => "UTF-8",
                "crowd" | "claim" => "10000 members, and at most 1024 are allowed",
                _ => "name \\\"",
            };
            log.says_once(&[&format!("\"proxy\":\"{what}\"")], why)?;
            let dials = rogue.accepted();
            ensure!((3..=40).contains(&dials), "{what}: {dials} dials");
            ended += dials;
        }
        let broken = mesh.disconnects(world, "protocol_error")?;
        ensure!(broken.abs_diff(ended) <= 4, "{broken} of {ended}");
        // Nobody has believed any of it.
        assert_eq!(lost_to_nobody(world), 0);
        ensure!(
            log.warnings(&[]).len() == whats.len(),
            "{:#?}",
            log.warnings(&[])
        );
        Ok(())
    })
}

/// A view that repeats itself or forgets its teller does no harm; neither ends the connection.
#[test]
fn duplicates_are_counted_and_absence_is_nothing() -> Result {
    let name = "duplicates_are_counted_and_absence_is_nothing";
    scenario(name, async |world, log| {
        let cluster = world.cluster();
        let twice = member("friend", &[])?;
        let duplicates = encoded(&view(vec![twice.clone(), twice.clone(), twice]))?;
        let absent = encoded(&view(vec![]))?;
        let rogues = vec![
            ("repeats", tells(cluster, "repeats", duplicates)),
            ("forgets", tells(cluster, "forgets", absent)),
        ];
        let mesh = Mesh::with(world, rogues).await?;
        mesh.live(world, 10 * MINUTE).await?;
        for rogue in &mesh.rogues {
            assert_eq!(rogue.accepted(), 1, "{}", rogue.name);
        }
        assert_eq!(world.connections(mesh.agent), 5);
        assert_eq!(mesh.ignored(world, "duplicate")?, 2);
        log.says_once(&["\"proxy\":\"repeats\""], "the last word counts")?;
        assert_eq!(log.warnings(&[]).len(), 1);
        Ok(())
    })
}

/// A proxy that nobody tells of, not even itself, is forgotten while its connection stands: it is kept,
/// and looked for now and then.
#[test]
fn a_proxy_that_forgets_itself_is_kept() -> Result {
    scenario("a_proxy_that_forgets_itself_is_kept", async |world, log| {
        let absent = encoded(&view(vec![]))?;
        let forgets = tells(world.cluster(), "forgets", absent);
        let rogue = Rogue::start(world, "forgets", &forgets)?;
        let address = rogue.address.to_string();
        let agents = world
            .start_agents_with(1, |_, plan| {
                plan.config.proxies = vec![address.clone()];
                Ok(())
            })
            .await?;
        world.run_for(SECOND).await;
        for _ in 0..30 * 60 {
            world.run_for(SECOND).await;
            ensure!(world.connections(agents[0]) == 1, "it was let go");
        }
        // Every three minutes, when what its hello said has expired.
        let dials = rogue.accepted();
        ensure!((2..=1 + 10).contains(&dials), "{dials} dials");
        assert_eq!(log.warnings(&[]).len(), 0);
        Ok(())
    })
}

/// More proxies than any mesh has: remembered up to a bound, dialled a few at a time, and the good
/// ones are held through it.
#[test]
fn ten_thousand_members_are_bounded() -> Result {
    scenario("ten_thousand_members_are_bounded", async |world, log| {
        let cluster = world.cluster();
        let mut told = Vec::new();
        for part in 0..10 {
            let members = (0..1_000)
                .map(|index| {
                    let index = part * 1_000 + index;
                    let address = format!("10.99.{}.{}:7443", index / 250, index % 250);
                    member(&format!("m{index}"), &[&address])
                })
                .collect::<Result<Vec<_>>>()?;
            told.extend(encoded(&view(members))?);
        }
        let rogues = vec![("crowd", tells(cluster, "crowd", told))];
        let mesh = Mesh::with(world, rogues).await?;
        world
            .until("it has told", |w| {
                mesh.ignored(w, "over_limit").unwrap() > 0
            })
            .await?;
        let before = mesh.attempts(world)?;
        mesh.live(world, 2 * MINUTE).await?;
        let ignored = mesh.ignored(world, "over_limit")?;
        let remembered = 10_000 - ignored;
        ensure!(
            (2 * MEMBERS_MAX - 4..=2 * MEMBERS_MAX).contains(&remembered),
            "{remembered} are remembered"
        );
        let desired = mesh.gauge(world, "mesh_agent_desired_proxies")?;
        ensure!(desired <= 2 * MEMBERS_MAX, "{desired} are wanted");
        // Four at a time that last for 10 s, and those through the balancer.
        let attempts = mesh.attempts(world)? - before;
        let duplicates = mesh.connects(world, "duplicate")?;
        ensure!((20..=56).contains(&(attempts - duplicates)), "{attempts}");
        ensure!(duplicates <= 60, "{duplicates}");
        assert_eq!(mesh.rogues[0].accepted(), 1);
        log.says_once(&["\"proxy\":\"crowd\""], "more of them than any mesh has")?;
        let unreached = log.warnings(&["cannot connect"]).len();
        ensure!(unreached <= 64, "{unreached} lines");
        Ok(())
    })
}

/// Tells this agent one view after the other, a second apart, over and over.
fn in_turn(cluster: &str, name: &str, pause: Duration, views: Vec<Vec<Member>>) -> Serve {
    let (cluster, name) = (cluster.to_owned(), name.to_owned());
    serve(move |connection| {
        let (cluster, name, views) = (cluster.clone(), name.clone(), views.clone());
        async move {
            let (mut send, _recv) = welcome(&connection, &cluster, &name).await?;
            for members in views.iter().cycle() {
                send.write_all(&encoded(&view(members.clone()))?).await?;
                tokio::select! {
                    () = tokio::time::sleep(pause) => {}
                    _ = connection.closed() => break,
                }
            }
            Ok(())
        }
    })
}

/// Generations and epochs that go back and forth: nobody is let go or dialled for it.
#[test]
fn time_that_runs_backwards_moves_nobody() -> Result {
    let name = "time_that_runs_backwards_moves_nobody";
    scenario(name, async |world, log| {
        let cluster = world.cluster();
        let at = |name: &str, epoch, generation| -> Result<Member> {
            Ok(Member {
                epoch,
                generation: Generation(generation),
                ..member(name, &["10.99.0.1:7443"])?
            })
        };
        // Of others, and of itself.
        let older = vec![
            vec![at("proxy-1", 0, 0)?],
            vec![at("proxy-1", 0, 7)?, at("proxy-2", 0, 0)?],
        ];
        let itself = vec![vec![at("yoyo", 1, 9)?], vec![at("yoyo", 1, 0)?]];
        let starts = vec![vec![at("again", 5, 0)?], vec![at("again", 1, 0)?]];
        let rogues = vec![
            ("older", in_turn(cluster, "older", SECOND, older)),
            ("yoyo", in_turn(cluster, "yoyo", SECOND, itself)),
            ("again", in_turn(cluster, "again", SECOND, starts)),
        ];
        let mesh = Mesh::with(world, rogues).await?;
        mesh.live(world, 4 * MINUTE).await?;
        for rogue in &mesh.rogues {
            let dials = rogue.accepted();
            // Believed to have started again, it is dialled again, where it is said to be.
            ensure!(dials <= 2, "{}: {dials} dials", rogue.name);
            log.says_once(
                &[&format!("\"proxy\":\"{}\"", rogue.name)],
                "goes on telling",
            )?;
        }
        let stale = mesh.ignored(world, "stale")?;
        ensure!(stale > 400, "{stale}");
        let attempts = mesh.attempts(world)?;
        ensure!(attempts < 150, "{attempts} dials");
        Ok(())
    })
}

/// No time to live is not much shorter than the shortest, and years are an hour.
#[test]
fn times_to_live_have_bounds() -> Result {
    scenario("times_to_live_have_bounds", async |world, log| {
        let cluster = world.cluster();
        let brief = Member {
            ttl_ms: 0,
            ..member("brief", &["10.99.0.1:7443"])?
        };
        let eternal = Member {
            ttl_ms: u64::MAX,
            ..member("eternal", &["10.99.0.2:7443"])?
        };
        let views = vec![vec![brief], vec![eternal]];
        let rogues = vec![("timeless", in_turn(cluster, "timeless", 200 * MS, views))];
        let mesh = Mesh::with(world, rogues).await?;
        mesh.live(world, 3 * MINUTE).await?;
        let told = mesh.ignored(world, "ttl")?;
        ensure!(told > 800, "{told}");
        // Two that swallow packets: each dial takes 10 s, and so long are the waits.
        let timeouts = mesh.connects(world, "timeout")?;
        ensure!((6..=36).contains(&timeouts), "{timeouts} dials");
        log.says_once(
            &["\"proxy\":\"timeless\""],
            "a time to live is out of bounds",
        )?;
        assert_eq!(mesh.gauge(world, "mesh_agent_desired_proxies")?, 6);
        // Nobody tells of them any more.
        mesh.friend.tell(mesh.good_view(world)?);
        world.net().set_isolated(mesh.rogues[0].host, true);
        mesh.live(world, 3 * MINUTE + 30 * SECOND).await?;
        assert_eq!(mesh.gauge(world, "mesh_agent_desired_proxies")?, 4);
        mesh.live(world, 57 * MINUTE).await?;
        assert_eq!(mesh.gauge(world, "mesh_agent_desired_proxies")?, 3);
        assert_eq!(mesh.gauge(world, "mesh_agent_inflight_leases")?, 0);
        let before = mesh.attempts(world)?;
        mesh.live(world, 2 * MINUTE).await?;
        assert_eq!(mesh.attempts(world)?, before, "it dials on");
        Ok(())
    })
}
