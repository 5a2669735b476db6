//! Runs seeds, prints how fast they are and how often faults hit, and shrinks those that fail.

use clap::Parser;
use nbd_sim::{
    plan::Plan,
    run::run,
    shrink::{from_ranges, shrink, to_ranges},
    threads::{self, Coverage},
};
use std::{io::Write, process::ExitCode, time::Instant};

/// Simulates clients and servers, on a network and a disk that fail as a seed says.
#[derive(Debug, Parser)]
struct Arguments {
    /// Number of seeds to run.
    #[arg(long, default_value_t = 1000)]
    seeds: u64,
    /// The first of them.
    #[arg(long, default_value_t = 0)]
    first: u64,
    /// Replay this seed, and print its events.
    #[arg(long)]
    seed: Option<u64>,
    /// Run the blocking client, in threads and in real time: the schedule does not follow from the seed.
    #[arg(long)]
    threads: bool,
    /// Put the disk on an object store, which fails as well.
    #[arg(long)]
    object: bool,
    /// Leaves out these faults and operations: `0-3,7`.
    #[arg(long, default_value = "", value_name = "NUMBERS")]
    without: String,
    /// Makes a mistake on purpose.
    #[cfg(feature = "mutations")]
    #[arg(long)]
    mutation: Option<String>,
}

impl Arguments {
    fn plan(&self, seed: u64) -> Plan {
        match self.object {
            true => Plan::new(seed).on_object_store(),
            false => Plan::new(seed),
        }
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    #[cfg(feature = "mutations")]
    if let Some(name) = &arguments.mutation {
        let mut all = nbd_io::mutation::Mutation::ALL.into_iter();
        nbd_io::mutation::Mutation::make(all.find(|known| format!("{known:?}") == *name));
    }
    let mut out = std::io::stdout().lock();
    let done = match arguments.seed {
        _ if arguments.threads => in_threads(&arguments, &mut out),
        Some(seed) => replay(&arguments.plan(seed), &arguments.without, &mut out),
        None => many(&arguments, &mut out),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            // There is nowhere to say more.
            let _ = writeln!(std::io::stderr(), "{error}");
            ExitCode::FAILURE
        }
    }
}

/// Runs one seed and prints its events. Returns whether nothing is wrong.
fn replay(plan: &Plan, without: &str, out: &mut impl Write) -> std::io::Result<bool> {
    let left_out = from_ranges(without).map_err(std::io::Error::other)?;
    let plan = plan.clone().without(&left_out);
    let report = run(&plan, true);
    write!(out, "{plan}{}", report.log)?;
    for wrong in &report.wrong {
        writeln!(out, "WRONG: {wrong}")?;
    }
    Ok(report.wrong.is_empty())
}

/// Runs seeds of the blocking client, several at once, since they mostly wait.
fn in_threads(arguments: &Arguments, out: &mut impl Write) -> std::io::Result<bool> {
    let start = Instant::now();
    let last = arguments.first + arguments.seeds;
    let report = threads::run_many(arguments.first..last)?;
    for (seed, wrong) in &report.wrong {
        writeln!(out, "seed {seed}: WRONG: {wrong}")?;
    }
    let time = start.elapsed();
    writeln!(
        out,
        "{} seeds of the blocking client in {time:.1?}, {} operations",
        arguments.seeds, report.operations
    )?;
    print_coverage(&report.coverage, out)?;
    Ok(report.wrong.is_empty())
}

fn print_coverage(coverage: &Coverage, out: &mut impl Write) -> std::io::Result<()> {
    writeln!(out, "{:28} {:>10} {:>10}", "fault", "injected", "hit")?;
    for (fault, (injected, hit)) in coverage {
        writeln!(out, "{fault:28} {injected:>10} {hit:>10}")?;
    }
    Ok(())
}

/// Runs many seeds, up to the first that fails.
fn many(arguments: &Arguments, out: &mut impl Write) -> std::io::Result<bool> {
    let start = Instant::now();
    let mut coverage = Coverage::new();
    let (mut operations, mut ghosts) = (0, 0);
    let (mut requests, mut answers) = (0, 0);
    // The report includes panics.
    std::panic::set_hook(Box::new(|_| {}));
    for seed in arguments.first..arguments.first + arguments.seeds {
        let plan = arguments.plan(seed);
        let report = run(&plan, false);
        operations += report.events.operations.len();
        ghosts += report.events.ghosts.len();
        requests += report.messages.0;
        answers += report.messages.1;
        for (fault, (injected, hit)) in report.events.coverage {
            let sum = coverage.entry(fault).or_default();
            sum.0 += injected;
            sum.1 += hit;
        }
        if !report.wrong.is_empty() {
            for wrong in &report.wrong {
                writeln!(out, "seed {seed}: WRONG: {wrong}")?;
            }
            let left_out = shrink(&plan, |plan| !run(plan, false).wrong.is_empty());
            let numbers = to_ranges(&left_out);
            let object = if arguments.object { " --object" } else { "" };
            writeln!(
                out,
                "shrunk; replay it by --seed {seed}{object} --without {numbers}"
            )?;
            replay(&plan, &numbers, out)?;
            return Ok(false);
        }
    }
    let time = start.elapsed();
    let rate = arguments.seeds as f64 / time.as_secs_f64();
    writeln!(
        out,
        "{} seeds in {time:.1?}, {rate:.0} a second; {operations} operations, {requests} requests \
         with {answers} answers, {ghosts} sectors changed late for connections that had been given \
         up",
        arguments.seeds
    )?;
    print_coverage(&coverage, out)?;
    Ok(true)
}
