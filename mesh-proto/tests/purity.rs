//! The core stays pure: nothing that does I/O, runs tasks or draws randomness is below it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::process::Command;

/// Beginnings of the names of crates that must never be below this one.
const FORBIDDEN: &[&str] = &[
    "async-",
    "axum",
    "getrandom",
    "hyper",
    "mio",
    "quinn",
    "rustls",
    "smol",
    "socket2",
    "tokio",
    "tracing-subscriber",
];

#[test]
fn nothing_impure_is_below_the_core() {
    let output = Command::new(env!("CARGO"))
        .args([
            "tree",
            "--package",
            "mesh-proto",
            "--edges",
            "normal",
            "--prefix",
            "none",
            "--offline",
        ])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo runs");
    let tree = String::from_utf8(output.stdout).unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(
        tree.contains("bincode v2.0.1"),
        "an unexpected tree: {tree}"
    );
    for line in tree.lines() {
        let impure = FORBIDDEN.iter().any(|name| line.starts_with(name));
        assert!(!impure, "mesh-proto must not depend on {line}");
    }
}
