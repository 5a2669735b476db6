//! Loads a server and prints one line of JSON: how many requests of a size, how fast.
//!
//! ```text
//! cargo run --release -p nbd-tokio --example tokio_load -- --unix /tmp/nbd.sock --op read --qd 16
//! ```

#[path = "../../../nbd-blocking/examples/load/common.rs"]
mod common;
#[path = "../support/mod.rs"]
mod support;
mod work;

use clap::Parser;
use common::{Failure, Options};
use nbd_tokio::Tokio;
use support::Flavour;

#[derive(Parser)]
struct Command {
    #[command(flatten)]
    options: Options,
    /// The number of threads: one, or one for each processor.
    #[arg(long, default_value = "multi")]
    runtime: Flavour,
}

fn main() -> Result<(), Failure> {
    let Command { options, runtime } = Command::parse();
    runtime
        .build()?
        .block_on(async { work::load("nbd-tokio", Tokio::current(), options).await })
}
