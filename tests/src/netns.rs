//! Network namespaces of a test: hosts of their own on this machine, by iproute2. They are gone with
//! their guard, also when the test fails.

use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::Result;
use crate::programs::{self, run};

/// A network namespace, deleted when it is dropped. Processes in it must have ended by then.
#[derive(Debug)]
pub struct Namespace {
    name: String,
}

impl Namespace {
    /// Makes one, whose loopback interface is up. `role` is a part of its name.
    ///
    /// # Errors
    /// When this user may not, or iproute2 is not installed.
    pub fn new(role: &str) -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("mesh-{}-{number}-{role}", std::process::id());
        run(programs::command("ip")?.args(["netns", "add", &name]))?.must()?;
        let namespace = Self { name };
        namespace.ip(&["link", "set", "lo", "up"])?;
        Ok(namespace)
    }

    /// Joins two by a pair of interfaces, each with its address (`10.0.0.1/24`).
    ///
    /// # Errors
    /// When an interface cannot be made.
    pub fn join(&self, interface: &str, address: &str, other: &Self, at: (&str, &str)) -> Result {
        self.ip(&[
            "link",
            "add",
            interface,
            "type",
            "veth",
            "peer",
            "name",
            at.0,
            "netns",
            &other.name,
        ])?;
        self.ip(&["addr", "add", address, "dev", interface])?;
        self.ip(&["link", "set", interface, "up"])?;
        other.ip(&["addr", "add", at.1, "dev", at.0])?;
        other.ip(&["link", "set", at.0, "up"])
    }

    /// Runs `ip` in it.
    ///
    /// # Errors
    /// When that fails.
    pub fn ip(&self, args: &[&str]) -> Result {
        let mut ip = programs::command("ip")?;
        run(ip.args(["-n", &self.name]).args(args))?.must()?;
        Ok(())
    }

    /// Runs a program in it to its end, which must be a success; what it wrote.
    ///
    /// # Errors
    /// When it fails.
    pub fn must(&self, program: &str, args: &[&str]) -> Result<String> {
        Ok(run(self.command(program)?.args(args))?.must()?.text())
    }

    /// A command for an installed program, in the namespace.
    ///
    /// # Errors
    /// When it is not installed.
    pub fn command(&self, program: &str) -> Result<Command> {
        Ok(self.moved(&programs::command(program)?))
    }

    /// The same command, in the namespace.
    #[must_use]
    pub fn moved(&self, command: &Command) -> Command {
        let mut moved = Command::new("ip");
        moved
            .args(["netns", "exec", &self.name])
            .arg(command.get_program())
            .args(command.get_args());
        if let Some(dir) = command.get_current_dir() {
            moved.current_dir(dir);
        }
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => moved.env(name, value),
                None => moved.env_remove(name),
            };
        }
        moved
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let deleted =
            programs::command("ip").and_then(|mut ip| run(ip.args(["netns", "del", &self.name])));
        if let Err(error) = deleted {
            tracing::warn!(name = self.name, %error, "a network namespace is left behind");
        }
    }
}
