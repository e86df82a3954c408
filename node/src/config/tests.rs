//! No text makes the reading of a configuration panic, and what is wrong is always said.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use proptest::prelude::*;

use super::file::Shape;
use super::load::{Sources, load_at};
use super::tree::{self, Report, Spots};
use super::{ConfigError, Place};

/// The errors that reading a file's text gives, before any value is looked into.
fn shape_errors(text: &str) -> Vec<String> {
    let path: Arc<Path> = Path::new("node.toml").into();
    let mut spots = Spots::default();
    let mut report = Report::default();
    let mut table = tree::parse_file(&path, text, &mut spots, &mut report);
    tree::fit(&mut table, &spots, &mut report);
    report.errors.iter().map(ConfigError::to_string).collect()
}

#[test]
fn all_misfits_are_found_and_named() {
    assert_eq!(
        shape_errors(
            "[quic]\nlisten = 1\n\nlisten2 = 2\n[[ingress]]\nopen = \"yes\"\n[[ingress]]\nhosts = [1, \"a\", 2]\n"
        ),
        [
            "node.toml:6: ingress[0].open: the text \"yes\" does not fit: write true or false without quotes",
            "node.toml:8: ingress[1].hosts[0]: the number 1 does not fit: write a text in quotes",
            "node.toml:8: ingress[1].hosts[2]: the number 2 does not fit: write a text in quotes",
            "node.toml:2: quic.listen: the number 1 does not fit: write a text in quotes",
            "node.toml:4: quic.listen2: unknown key: did you mean \"listen\"?",
        ]
    );
}

#[test]
fn windows_line_ends_and_empty_files() {
    assert!(shape_errors("").is_empty());
    assert!(shape_errors("role = \"proxy\"\r\n\r\n[quic]\r\nlisten = \"a\"\r\n").is_empty());
    assert!(shape_errors("\u{feff}role = \"proxy\"\n").is_empty());
}

#[test]
fn the_number_of_errors_is_bounded() {
    let text: String = (0..10_000).map(|n| format!("key{n} = 1\n")).collect();
    assert!(shape_errors(&text).len() < 200);
}

#[test]
fn deep_nesting_is_refused_without_overflow() {
    let deep = format!("name = {}{}", "[".repeat(100_000), "]".repeat(100_000));
    assert!(!shape_errors(&deep).is_empty());
    let dotted = format!("{} = 1", vec!["a"; 50_000].join("."));
    assert!(!shape_errors(&dotted).is_empty());
    let set = vec![("name".to_owned(), "{a=".repeat(50_000))];
    assert!(
        load_at(
            &Sources {
                set,
                ..Sources::default()
            },
            0
        )
        .is_err()
    );
}

/// A text that looks like a config file but for what chance did to it.
fn mangled() -> impl Strategy<Value = String> {
    let line = prop_oneof![
        prop::sample::select(vec![
            "role = \"proxy\"",
            "role = \"agent\"",
            "[tls]",
            "ca = \"ca.pem\"",
            "[quic]",
            "listen = \"127.0.0.1:7443\"",
            "keepalive = \"5s\"",
            "stream_window = \"1MiB\"",
            "streams_max = 5",
            "[proxy]",
            "peers = [\"a:1\", \"b:2\"]",
            "[[ingress]]",
            "kind = \"http\"",
            "tls = { cert = \"a\", key = \"b\" }",
            "auth = { tokens_file = \"t\" }",
            "open = true",
            "hosts = []",
            "[agent]",
            "proxies = [\"a:1\"]",
            "allow = [\"10.0.0.0/8:*\"]",
            "[[service]]",
            "name = \"web\"",
            "address = \"unix:/run/x\"",
            "[log]",
            "level = \"info\"",
            "[admin]",
            "[metrics]",
            "[store]",
            "proxy.allow = 1",
            "ingress = 5",
            "[ingress.tls]",
            "a.b.c = { d = [1, { e = 2 }] }",
            "x = 0x",
            "y = \"\"\"",
            "[",
            "]]",
            "= =",
            "\"\" = ''",
        ])
        .prop_map(str::to_owned),
        "[a-z_.]{1,12} ?= ?[-0-9a-z\"\\[\\]{}',. ]{0,12}",
        "\\PC{0,30}",
    ];
    prop::collection::vec(line, 0..30).prop_map(|lines| lines.join("\n"))
}

/// What happens to a whole file: [`load_at`] with the text in a file would be slow, so the steps.
fn survives(text: &str) -> Result<(), TestCaseError> {
    let dir = tempfile::tempdir().map_err(|error| TestCaseError::fail(error.to_string()))?;
    let file: PathBuf = dir.path().join("node.toml");
    std::fs::write(&file, text).map_err(|error| TestCaseError::fail(error.to_string()))?;
    match load_at(
        &Sources {
            file: Some(file),
            ..Sources::default()
        },
        0,
    ) {
        // No certificate exists, so that nothing can be in order.
        Ok(_) => prop_assert!(false, "accepted"),
        Err(errors) => {
            prop_assert!(errors.iter().count() > 0);
            for error in &errors {
                prop_assert!(
                    !error.what.is_empty() && !error.remedy.is_empty(),
                    "{error:?}"
                );
                prop_assert!(!matches!(error.place, Place::RoleFlag), "{error:?}");
                prop_assert!(!error.to_string().contains('\n'), "{error:?}");
            }
        }
    }
    Ok(())
}

proptest! {
    #[test]
    fn no_file_panics(text in mangled()) {
        survives(&text)?;
    }

    #[test]
    fn no_text_panics(text in "(\\PC|[\\n\\[\\]\"'=.#\\\\])*") {
        survives(&text)?;
    }

    #[test]
    fn no_variable_or_flag_panics(key in "[a-z0-9_.\\[\\]]{0,20}|\\PC*", value in "\\PC*|[0-9\\[\\]{}=,\"a]*") {
        let sources = Sources {
            env: vec![(format!("MESH__{key}"), value.clone())],
            set: vec![(key, value)],
            ..Sources::default()
        };
        prop_assert!(load_at(&sources, 0).is_err());
    }

    /// Whatever fits the shape comes out of the writer as it went in.
    #[test]
    fn shapes_round_trip(text in mangled()) {
        if let Ok(shape) = toml::from_str::<Shape>(&text) {
            let written = toml::to_string(&shape).unwrap();
            prop_assert_eq!(toml::from_str::<Shape>(&written).unwrap(), shape, "{}", written);
        }
    }
}
