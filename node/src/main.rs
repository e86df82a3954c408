//! The binary `node`: parse, run, exit with a code.

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    match node::cli::run(node::cli::Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            #[expect(
                clippy::print_stderr,
                reason = "this is where the person at the terminal reads why"
            )]
            {
                eprintln!("error: {error}");
            }
            error.exit_code()
        }
    }
}
