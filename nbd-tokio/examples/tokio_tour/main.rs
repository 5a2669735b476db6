//! The main job from end to end: list exports, describe one, map it, write, read back and verify,
//! write zeroes, trim, cache, flush, disconnect; many requests at once; and how fast it was.
//!
//! ```text
//! cargo run --release -p nbd-tokio --example tokio_tour              # with a server of its own
//! cargo run --release -p nbd-tokio --example tokio_tour -- URI       # reads only
//! cargo run --release -p nbd-tokio --example tokio_tour -- --write URI
//! ```

#![expect(clippy::print_stdout, reason = "a tour is for looking at")]

#[path = "../../../nbd-blocking/examples/tour/common.rs"]
mod common;
mod host;
mod many;
mod measure;
mod route;
#[path = "../../../nbd-blocking/examples/tour/show.rs"]
mod show;
#[path = "../support/mod.rs"]
mod support;
mod walk;

use clap::Parser;
use common::{Arguments, Outcome};
use nbd_tokio::{Listener, Tokio};
use support::Flavour;

#[derive(Parser)]
struct Command {
    #[command(flatten)]
    arguments: Arguments,
    /// The number of threads: one, or one for each processor.
    #[arg(long, default_value = "multi")]
    runtime: Flavour,
}

fn main() -> Outcome<()> {
    let Command { arguments, runtime } = Command::parse();
    runtime.build()?.block_on(async {
        let tour = route::tour(Tokio::current(), arguments, Listener::new);
        // A task is woken faster than the future of `block_on`.
        tokio::spawn(tour).await?
    })
}
