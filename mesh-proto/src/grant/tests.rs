use super::*;

fn own() -> Cluster {
    "example.com".parse().unwrap()
}

fn patterns<T: FromStr<Err = InvalidPattern>>(texts: &[&str]) -> Vec<T> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

/// A grant as in a config; no agents or targets: left out.
fn grant(who: &[&str], may: &[May], agents: &[&str], targets: &[&str]) -> Grant {
    Grant {
        who: patterns(who),
        may: may.iter().copied().collect(),
        agents: (!agents.is_empty()).then(|| patterns(agents)),
        targets: (!targets.is_empty()).then(|| patterns(targets)),
    }
}

fn policy(grants: Vec<Grant>) -> Policy {
    Policy::new(own(), grants)
}

fn dials(policy: &Policy, who: &str, agent: &str, target: &str) -> bool {
    let (who, agent, target) = (
        who.parse().unwrap(),
        agent.parse().unwrap(),
        target.parse().unwrap(),
    );
    policy.may_dial(&who, &agent, &target).is_ok()
}

const EVERYBODY: [&str; 5] = [
    "user:alice",
    "token:ci",
    "ingress:127.0.0.1:8123",
    "agent:a1",
    "cluster:b.example.org",
];

#[test]
fn defaults_are_the_documented_ones() {
    let policy = policy(Vec::new());
    for (who, rights) in [
        ("user:alice", &[May::Read, May::Dial][..]),
        ("token:ci", &[May::Dial]),
        ("ingress:127.0.0.1:8123", &[May::Dial]),
        ("agent:a1", &[]),
        ("cluster:b.example.org", &[]),
    ] {
        for may in May::ALL {
            let principal = who.parse().unwrap();
            assert_eq!(
                policy.may(&principal, may),
                rights.contains(&may),
                "{who} {may}"
            );
        }
        for agent in ["db-1", "db-1.example.com", "x.b.example.org", "example.com"] {
            assert_eq!(
                dials(&policy, who, agent, "service:db"),
                rights.contains(&May::Dial),
                "{who} {agent}"
            );
        }
    }
}

#[test]
fn a_dial_grant_replaces_the_default_of_its_kind_alone() {
    for (granted, kind) in [
        ("user:bob", "user"),
        ("token:deploy", "token"),
        ("ingress:127.0.0.1:8124", "ingress"),
        ("agent:a2", "agent"),
        ("cluster:c.example.org", "cluster"),
    ] {
        let before = policy(Vec::new());
        let after = policy(vec![grant(&[granted], &[May::Dial], &["db-*"], &[])]);
        for who in EVERYBODY {
            let of_kind = who.starts_with(kind);
            let expected = dials(&before, who, "db-1", "service:db") && !of_kind;
            assert_eq!(
                dials(&after, who, "db-1", "service:db"),
                expected,
                "{granted} {who}"
            );
        }
        assert!(dials(&after, granted, "db-1", "service:db"));
        assert!(!dials(&after, granted, "web-1", "service:db"));
        // What is not about dialling takes nothing away.
        let other = policy(vec![grant(
            &[granted],
            &[May::Read, May::Tunnel, May::Admin],
            &[],
            &[],
        )]);
        for who in EVERYBODY {
            let (then, now) = (
                dials(&before, who, "a", "b:1"),
                dials(&other, who, "a", "b:1"),
            );
            assert_eq!(then, now, "{granted} {who}");
        }
    }
}

#[test]
fn other_rights_are_only_added() {
    let policy = policy(vec![grant(
        &["user:alice", "token:ci"],
        &[May::Read, May::Admin],
        &[],
        &[],
    )]);
    for (who, may, expected) in [
        ("user:alice", May::Read, true),
        ("user:alice", May::Dial, true),
        ("user:alice", May::Tunnel, false),
        ("user:alice", May::Admin, true),
        ("user:bob", May::Read, true),
        ("user:bob", May::Dial, true),
        ("user:bob", May::Admin, false),
        ("token:ci", May::Read, true),
        ("token:ci", May::Admin, true),
        ("token:other", May::Read, false),
        ("agent:alice", May::Admin, false),
    ] {
        assert_eq!(
            policy.may(&who.parse().unwrap(), may),
            expected,
            "{who} {may}"
        );
    }
}

#[test]
fn who_matches() {
    for (pattern, matching, others) in [
        (
            "user:alice",
            &["user:alice"][..],
            &["user:alice2", "agent:alice", "token:alice"][..],
        ),
        ("user:*", &["user:alice", "user:b"], &["agent:alice"]),
        (
            "agent:db-*",
            &["agent:db-1", "agent:db-x-y"],
            &["agent:db", "agent:adb-1", "user:db-1"],
        ),
        ("agent:*-db", &["agent:a-db"], &["agent:db", "agent:a-db2"]),
        (
            "agent:a*a",
            &["agent:aa", "agent:aba"],
            &["agent:a", "agent:ab"],
        ),
        (
            "ingress:127.0.0.1:*",
            &["ingress:127.0.0.1:80"],
            &["ingress:10.0.0.1:80"],
        ),
        (
            "ingress:*",
            &["ingress:[::1]:80", "ingress:embedded"],
            &["user:embedded"],
        ),
        ("cluster:*", &["cluster:b.example.org"], &["user:b"]),
        (
            "cluster:*.example.org",
            &["cluster:b.example.org", "cluster:a.b.example.org"],
            &["cluster:example.org", "cluster:b.example.com"],
        ),
    ] {
        let who: WhoPattern = pattern.parse().unwrap();
        assert_eq!(who.to_string(), pattern);
        for (texts, expected) in [(matching, true), (others, false)] {
            for text in texts {
                assert_eq!(
                    who.matches(&text.parse().unwrap()),
                    expected,
                    "{pattern} {text}"
                );
            }
        }
    }
}

#[test]
fn agents_match_however_they_are_written() {
    for (pattern, matching, others) in [
        (
            "db-1",
            &["db-1", "db-1.example.com"][..],
            &["db-2", "db-1.b.example.org", "example.com"][..],
        ),
        (
            "db-*",
            &["db-1", "db-2.example.com"],
            &["db", "db-1.b.example.org"],
        ),
        (
            "*",
            &["db-1", "web.example.com"],
            &["db-1.b.example.org", "b.example.org", "example.com"],
        ),
        (
            "db-1.example.com",
            &["db-1", "db-1.example.com"],
            &["db-2", "db-1.b.example.org"],
        ),
        (
            "*.example.com",
            &["db-1", "db-1.example.com"],
            &["example.com", "a.b.example.com", "db-1.b.example.org"],
        ),
        (
            "*.b.example.org",
            &["db-1.b.example.org"],
            &["db-1", "b.example.org"],
        ),
        (
            "b.example.org",
            &["b.example.org"],
            &["b", "a.b.example.org"],
        ),
    ] {
        let agents: AgentPattern = pattern.parse().unwrap();
        assert_eq!(agents.to_string(), pattern);
        for (texts, expected) in [(matching, true), (others, false)] {
            for text in texts {
                assert_eq!(
                    agents.matches(&text.parse().unwrap(), &own()),
                    expected,
                    "{pattern} {text}"
                );
            }
        }
    }
}

#[test]
fn targets_match_as_they_are_written() {
    for (pattern, matching, others) in [
        (
            "10.0.0.0/8:5432",
            &["10.1.2.3:5432", "[::ffff:10.1.2.3]:5432"][..],
            &[
                "10.1.2.3:80",
                "11.0.0.1:5432",
                "db.local:5432",
                "service:db",
            ][..],
        ),
        (
            "*.svc.local:80-443",
            &["web.svc.local:80", "a.b.svc.local:443"],
            &["svc.local:80", "web.svc.local:444", "10.0.0.1:80"],
        ),
        (
            "db.local:*",
            &["db.local:1", "DB.local.:5432"],
            &["a.db.local:1"],
        ),
        (
            "unix:/run/x.sock",
            &["unix:/run/x.sock"],
            &["unix:/run/x", "service:x"],
        ),
        ("service:web", &["service:web"], &["service:web2", "web:80"]),
        ("service:db-*", &["service:db-1"], &["service:db"]),
        (
            "service:*",
            &["service:web"],
            &["10.0.0.1:80", "unix:/run/x.sock"],
        ),
        (
            "0.0.0.0/0:*",
            &["127.0.0.1:1"],
            &["[::1]:1", "localhost:1", "service:web"],
        ),
    ] {
        let targets: TargetPattern = pattern.parse().unwrap();
        assert_eq!(targets.to_string(), pattern);
        for (texts, expected) in [(matching, true), (others, false)] {
            for text in texts {
                assert_eq!(
                    targets.matches(&text.parse().unwrap()),
                    expected,
                    "{pattern} {text}"
                );
            }
        }
    }
}

#[test]
fn what_can_never_match_is_refused_with_the_rule() {
    fn says<T: FromStr<Err = InvalidPattern> + fmt::Debug>(rows: &[(&str, &str)]) {
        for (text, rule) in rows {
            let error = text.parse::<T>().unwrap_err().to_string();
            assert!(error.contains(rule), "{text}: {error}");
            assert!(error.starts_with("pattern \""), "{error}");
        }
    }
    says::<WhoPattern>(&[
        ("", "it has no colon"),
        ("*", "it has no colon"),
        ("alice", "it has no colon"),
        ("users:alice", "there is no such kind"),
        ("use*r:alice", "there is no such kind"),
        ("*:alice", "there is no such kind"),
        ("user:", "a label is empty"),
        ("user:Al*", "'A' is upper case"),
        ("user:a.*", "'.' is not allowed"),
        ("user:-*", "begins or ends with '-'"),
        ("user:**", "several stars"),
        ("user:a*b*c", "several stars"),
        ("cluster:local", "it has no dot"),
        ("ingress:a b", "printable ASCII"),
    ]);
    says::<AgentPattern>(&[
        ("", "a label is empty"),
        ("Db-*", "'D' is upper case"),
        ("agent:a1", "':' is not allowed"),
        ("*-*", "several stars"),
        ("a..*", "a label is empty"),
    ]);
    says::<TargetPattern>(&[
        ("", "or service:name"),
        ("10.0.0.0/8", "the ports are missing"),
        ("10.0.0.1/8:80", "10.0.0.0/8:80"),
        ("*:80", "0.0.0.0/0:ports"),
        ("service:", "a label is empty"),
        ("service:*-*", "several stars"),
        ("service:web:80", "':' is not allowed"),
        ("unix:run/x.sock", "absolute"),
    ]);
    assert_eq!(
        "dail".parse::<May>().unwrap_err().to_string(),
        "\"dail\" is nothing that can be granted; write read, dial, tunnel or admin"
    );
}

#[test]
fn a_star_stands_for_no_text_too() {
    let longest = "x".repeat(63);
    let who: WhoPattern = format!("user:{longest}*").parse().unwrap();
    assert!(who.matches(&format!("user:{longest}").parse().unwrap()));
}

#[test]
fn denials_say_why_and_what_to_add() {
    let deny = |policy: &Policy, who: &str, agent: &str, target: &str| {
        let (who, agent, target) = (
            who.parse().unwrap(),
            agent.parse().unwrap(),
            target.parse().unwrap(),
        );
        policy
            .may_dial(&who, &agent, &target)
            .unwrap_err()
            .to_string()
    };
    let none = policy(Vec::new());
    assert_eq!(
        deny(&none, "agent:a1", "db-1.example.com", "service:db"),
        "agent:a1 may not dial service:db of db-1.example.com: by default no agent may dial; to allow it, add to the config of every proxy: \
         [[grant]] who = [\"agent:a1\"], may = [\"dial\"], agents = [\"db-1\"], targets = [\"service:db\"]"
    );
    let some = policy(vec![
        grant(
            &["user:alice"],
            &[May::Dial],
            &["db-*"],
            &["10.0.0.0/8:5432"],
        ),
        grant(&["user:carol"], &[May::Dial], &[], &[]),
    ]);
    for (who, target, why) in [
        (
            "user:bob",
            "10.0.0.1:5432",
            ": grants say which user principals may dial, and none names this one; ",
        ),
        (
            "user:alice",
            "10.0.0.1:80",
            ": no grant for user:alice covers that; ",
        ),
        (
            "user:alice",
            "db.local:5432",
            " covers that (a rule for a network covers no name); ",
        ),
        (
            "user:alice",
            "service:db",
            " covers that (only service: rules cover a service); ",
        ),
    ] {
        let text = deny(&some, who, "db-1", target);
        assert!(text.contains(why), "{text}");
    }
}

/// What is asked for cannot widen the grant that a denial suggests, for whoever copies it.
#[test]
fn a_quote_in_a_path_does_not_end_the_string() {
    let path = "unix:/run/a\", \"0.0.0.0/0:*\\";
    let denied = policy(Vec::new())
        .may_dial(
            &"agent:a1".parse().unwrap(),
            &"a2".parse().unwrap(),
            &path.parse().unwrap(),
        )
        .unwrap_err();
    let told = denied.missing.to_string();
    assert!(
        told.ends_with(r#"targets = ["unix:/run/a\", \"0.0.0.0/0:*\\"]"#),
        "{told}"
    );
}

/// Where `a.example.com` is a cluster, it is no agent of `example.com`, though it could be one by its
/// name: a grant for agents of the own cluster does not lead there.
#[test]
fn a_cluster_that_looks_like_an_agent_is_none() {
    let own: Cluster = "example.com".parse().unwrap();
    let (agent, text) = ("a".parse().unwrap(), "a.example.com".parse().unwrap());
    for (pattern, covers_agent, covers_cluster) in [
        ("a", true, false),
        ("*", true, false),
        ("b", false, false),
        ("a.example.com", true, false),
        ("*.example.com", true, false),
        ("a*.example.com", true, false),
        ("*.b.example.com", false, false),
    ] {
        let pattern: AgentPattern = pattern.parse().unwrap();
        assert_eq!(
            pattern.covers(Whose::Agent(&agent), &own),
            covers_agent,
            "{pattern}"
        );
        assert_eq!(
            pattern.covers(Whose::Cluster(&text), &own),
            covers_cluster,
            "{pattern}"
        );
    }
    // What a denial says is missing must help: there is no pattern for that one.
    let policy = policy(vec![grant(&["user:bob"], &[May::Dial], &["*"], &[])]);
    let (who, target) = ("user:bob".parse().unwrap(), "10.0.0.1:80".parse().unwrap());
    let denied = policy
        .may_dial_of(&who, Whose::Cluster(&text), &text, &target)
        .unwrap_err();
    let helped = Policy::new(own, vec![denied.missing]);
    assert!(
        helped
            .may_dial_of(&who, Whose::Cluster(&text), &text, &target)
            .is_ok()
    );
}
