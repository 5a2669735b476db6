//! The command `nbd`.

#![forbid(unsafe_code)]

mod bench;
mod check;
mod cli;
mod compare;
mod connect;
mod content;
mod copy;
mod descriptors;
mod disk;
mod dump;
mod embedded;
mod generate;
mod info;
mod interrupt;
mod list;
mod log;
mod map;
mod object;
mod outcome;
mod output;
mod ping;
mod progress;
mod range;
mod ranges;
mod report;
mod runtime;
mod sample;
mod serve;
mod session;
mod size;
mod target;
mod text;
mod threads;
mod transfer;
mod work;
mod zeroes;

use clap::Parser;
use outcome::{Answer, Error};
use std::process::ExitCode;

fn main() -> ExitCode {
    let result = match cli::Cli::try_parse() {
        Ok(cli) => cli.run(),
        Err(error) if error.use_stderr() => error.exit(),
        Err(help) => help.print().map(|()| Answer::Yes).map_err(Error::Output),
    };
    outcome::report(result)
}
