//! Parts of the drivers, under many schedules of their threads: see `schedules/run.sh`.

#![expect(
    dead_code,
    unused_imports,
    reason = "the parts have more than the models use"
)]

mod block_on;
mod blocking;
mod host;
mod memory;
mod shared;
mod stream;

#[path = "../../nbd-blocking/src/link/mod.rs"]
mod link;
#[path = "../../nbd-blocking/src/range_guard.rs"]
mod range_guard;
#[path = "../../nbd-io/src/server/budget.rs"]
mod budget;

use shuttle::{
    Config, Runner,
    scheduler::{PctScheduler, RandomScheduler},
};
use std::{
    panic, process,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

pub(crate) use nbd_io::client::{Error, Lost};

mod dial_clock {
    use std::{sync::LazyLock, time::Instant};

    pub(crate) static START: LazyLock<Instant> = LazyLock::new(Instant::now);
}

/// A model: a few threads, which end under every schedule or panic.
type Model = fn();

const MODELS: [(&str, Model); 11] = [
    (
        "threads share a connection",
        blocking::threads_share_a_connection,
    ),
    ("a queue beside a caller", blocking::a_queue_beside_a_caller),
    ("a connection ends", blocking::a_connection_ends),
    (
        "changes of the same bytes",
        blocking::changes_of_the_same_bytes,
    ),
    ("tasks share a connection", shared::tasks_share_a_connection),
    ("a task drops its request", shared::a_task_drops_its_request),
    (
        "tasks share flushes",
        shared::tasks_share_flushes_over_a_loss,
    ),
    ("memory comes back", memory::memory_comes_back),
    ("clients share memory", shared::clients_share_memory),
    ("a server is stopped", shared::a_server_is_stopped),
    ("threads of a server", host::jobs_of_threads),
];

/// Runs the models whose names contain the second argument under so many schedules as the first
/// says: one half by steps that are chosen at random, the other by threads of random priority.
fn main() {
    let mut arguments = std::env::args().skip(1);
    let count = arguments.next().expect("the number of schedules");
    let schedules: usize = count.parse().expect("a number");
    let filter = arguments.next().unwrap_or_default();
    for (name, model) in MODELS {
        if name.contains(&filter) {
            let start = Instant::now();
            let begun = Arc::<AtomicUsize>::default();
            let explored = panic::catch_unwind(|| explore(model, schedules, &begun));
            let begun = begun.load(Ordering::Relaxed);
            if explored.is_err() {
                println!("{name}: FAILED in schedule {begun}");
                process::exit(1);
            }
            println!("{name}: {begun} schedules in {:.1?}", start.elapsed());
        }
    }
}

fn explore(model: Model, schedules: usize, begun: &Arc<AtomicUsize>) {
    let mut config = Config::new();
    config.stack_size = 1 << 20;
    config.silence_warnings = true;
    config.max_steps = shuttle::MaxSteps::FailAfter(200_000);
    let begun = begun.clone();
    let run = move || {
        begun.fetch_add(1, Ordering::Relaxed);
        model();
    };
    let at_random = RandomScheduler::new(schedules / 2);
    Runner::new(at_random, config.clone()).run(run.clone());
    let by_priority = PctScheduler::new(3, schedules - schedules / 2);
    Runner::new(by_priority, config).run(run);
}
