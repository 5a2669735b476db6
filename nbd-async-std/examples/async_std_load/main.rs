//! Loads a server and prints one line of JSON: how many requests of a size, how fast.
//!
//! ```text
//! cargo run --release -p nbd-async-std --example async_std_load -- --unix /tmp/nbd.sock --op read --qd 16
//! ```

#[path = "../../../nbd-blocking/examples/load/common.rs"]
mod common;
#[path = "../../../nbd-tokio/examples/tokio_load/work.rs"]
mod work;

use clap::Parser;
use common::{Failure, Options};
use nbd_async_std::AsyncStd;

#[derive(Parser)]
struct Command {
    #[command(flatten)]
    options: Options,
}

fn main() -> Result<(), Failure> {
    let Command { options } = Command::parse();
    async_std::task::block_on(work::load("nbd-async-std", AsyncStd, options))
}
