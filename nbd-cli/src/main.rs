//! The command `nbd`.

#![forbid(unsafe_code)]

mod bench;
mod cli;
mod connect;
mod content;
mod dump;
mod embedded;
mod generate;
mod info;
mod list;
mod map;
mod outcome;
mod output;
mod ping;
mod range;
mod report;
mod runtime;
mod serve;
mod session;
mod size;
mod target;
mod text;

use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    let cli = cli::Cli::parse();
    outcome::report(cli.run())
}
