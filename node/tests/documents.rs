//! The documents say what is so: their config files load, their links lead somewhere, the tests
//! that they name exist, and their table of metrics is the nodes' own.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use certs::{Authority, Kind, Request, Validity};
use node::agent::metrics::AgentMetrics;
use node::config::{Sources, load};
use node::metrics::{NodeMetrics, Registry};
use node::proxy::metrics::ProxyMetrics;
use tempfile::TempDir;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn text(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Every document, by its path from the root.
fn documents() -> Vec<String> {
    let mut documents = vec!["README.md".to_owned(), "CHANGELOG.md".to_owned()];
    for entry in fs::read_dir(root().join("docs")).unwrap() {
        documents.push(format!(
            "docs/{}",
            entry.unwrap().file_name().to_str().unwrap()
        ));
    }
    documents.sort_unstable();
    documents
}

/// The blocks of a document that are marked as `language`.
fn blocks<'t>(text: &'t str, language: &str) -> Vec<&'t str> {
    let start = format!("```{language}\n");
    text.split(start.as_str())
        .skip(1)
        .map(|rest| rest.split("```").next().unwrap())
        .collect()
}

/// Loads a config file as the documents have it, with the certificates that they have made.
fn loads(what: &str, config: &str) {
    let dir = TempDir::new().unwrap();
    let days = Validity::days(90).unwrap();
    let authority = Authority::create("example.com".parse().unwrap(), &days).unwrap();
    authority.save(dir.path()).unwrap();
    for (kind, name) in [(Kind::Proxy, "proxy-1"), (Kind::Agent, "a1")] {
        let request = Request::new(kind, name.parse().unwrap(), days);
        authority.issue(&request).unwrap().save(dir.path()).unwrap();
    }
    let path = dir.path().join("node.toml");
    fs::write(&path, config).unwrap();
    let sources = Sources {
        file: Some(path),
        ..Sources::default()
    };
    let loaded = load(&sources).unwrap_or_else(|errors| panic!("{what}:\n{errors}"));
    assert!(loaded.warnings.is_empty(), "{what}: {:?}", loaded.warnings);
}

#[test]
fn config_files_load() {
    let readme = text("README.md");
    let files = blocks(&readme, "toml");
    assert_eq!(files.len(), 2, "a proxy's and an agent's");
    for file in files {
        loads("README.md", file);
    }
    let config = text("docs/CONFIG.md");
    for name in ["deploy/examples/proxy.toml", "deploy/examples/agent.toml"] {
        let example = text(name);
        loads(name, &example);
        assert!(
            blocks(&config, "toml").contains(&example.as_str()),
            "docs/CONFIG.md has another {name}"
        );
    }
}

#[test]
fn links_lead_somewhere() {
    for document in documents() {
        let text = text(&document);
        let dir = root().join(&document).parent().unwrap().to_owned();
        for link in text
            .split("](")
            .skip(1)
            .map(|rest| rest.split(')').next().unwrap())
        {
            if link.contains("://") {
                continue;
            }
            let (path, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = if path.is_empty() {
                text.clone()
            } else {
                fs::read_to_string(dir.join(path))
                    .unwrap_or_else(|error| panic!("{document}: {link}: {error}"))
            };
            let found = anchor.is_empty()
                || target
                    .lines()
                    .any(|line| anchor_of(line).as_deref() == Some(anchor));
            assert!(found, "{document}: {link} has no heading");
        }
    }
}

/// The anchor that a heading gets.
fn anchor_of(line: &str) -> Option<String> {
    let heading = line
        .strip_prefix('#')?
        .trim_start_matches('#')
        .strip_prefix(' ')?;
    let kept = heading
        .chars()
        .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    Some(kept.collect::<String>().to_lowercase().replace(' ', "-"))
}

#[test]
fn promised_tests_exist() {
    let mut promises = 0;
    for row in text("docs/THREAT_MODEL.md")
        .lines()
        .filter(|line| line.contains(".rs` |"))
    {
        let quoted = |cell: &str| -> Vec<String> {
            cell.split('`')
                .skip(1)
                .step_by(2)
                .map(str::to_owned)
                .collect()
        };
        let cells: Vec<&str> = row.trim_matches('|').split('|').collect();
        let [_, tests, files] = cells[..] else {
            panic!("{row}")
        };
        let tests = tests.split(" (").next().unwrap();
        let sources: Vec<String> = quoted(files).iter().map(|file| text(file)).collect();
        for test in quoted(tests) {
            let named = format!("fn {test}(");
            assert!(
                sources.iter().any(|source| source.contains(&named)),
                "{test} is not in {files}"
            );
            promises += 1;
        }
    }
    assert!(promises > 20, "{promises} promises");
}

#[test]
fn metrics_are_told_of() {
    let (proxy, agent) = (Registry::new(), Registry::new());
    // A family without a series is not gathered.
    NodeMetrics::new(&proxy)
        .unwrap()
        .cert_expiry
        .with_label_values(&["node"])
        .set(1);
    ProxyMetrics::new(&proxy).unwrap();
    AgentMetrics::new(&agent).unwrap();
    let mut names = BTreeSet::new();
    for family in proxy.gather().iter().chain(&agent.gather()) {
        names.insert(family.name().to_owned());
    }
    // Of proxies with a store.
    names.extend(node::proxy::tunnels::metric_names().unwrap());
    let documented: BTreeSet<String> = text("docs/OPERATIONS.md")
        .lines()
        .filter_map(|line| line.strip_prefix("| `mesh_"))
        .map(|rest| format!("mesh_{}", rest.split('`').next().unwrap()))
        .collect();
    assert_eq!(documented, names);
}
