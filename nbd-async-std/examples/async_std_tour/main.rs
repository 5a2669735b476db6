//! The main job from end to end: list exports, describe one, map it, write, read back and verify,
//! write zeroes, trim, cache, flush, disconnect; many requests at once; and how fast it was.
//!
//! ```text
//! cargo run --release -p nbd-async-std --example async_std_tour              # with a server of its own
//! cargo run --release -p nbd-async-std --example async_std_tour -- URI       # reads only
//! cargo run --release -p nbd-async-std --example async_std_tour -- --write URI
//! ```

#![expect(clippy::print_stdout, reason = "a tour is for looking at")]

#[path = "../../../nbd-blocking/examples/tour/common.rs"]
mod common;
#[path = "../../../nbd-tokio/examples/tokio_tour/host.rs"]
mod host;
#[path = "../../../nbd-tokio/examples/tokio_tour/many.rs"]
mod many;
#[path = "../../../nbd-tokio/examples/tokio_tour/measure.rs"]
mod measure;
#[path = "../../../nbd-tokio/examples/tokio_tour/route.rs"]
mod route;
#[path = "../../../nbd-blocking/examples/tour/show.rs"]
mod show;
#[path = "../../../nbd-tokio/examples/tokio_tour/walk.rs"]
mod walk;

use async_std::task;
use clap::Parser;
use common::{Arguments, Outcome};
use nbd_async_std::{AsyncStd, Listener};

fn main() -> Outcome<()> {
    let tour = route::tour(AsyncStd, Arguments::parse(), Listener::new);
    task::block_on(task::spawn(tour))
}
