//! `nbd copy`: a disk from one place to another.

mod digest;
mod ends;
mod pace;
mod record;
mod stream;
mod verify;
mod window;
mod worker;

use crate::{
    attend::attend,
    cli::Common,
    connect::Connect,
    outcome::{Answer, Context, Error, Result, say},
    output,
    progress::{Mode, Progress},
    runtime,
    size::{self, Size},
    target::Target,
    work::Work,
};
use clap::Args;
use ends::Ends;
use nbd_tokio::ContextName;
use pace::Pace;
use record::{Record, State};
use std::{path::PathBuf, sync::Arc, thread};
use tokio::sync::mpsc;
use worker::{Job, Settings, Worker};

/// The most threads that copy.
const THREADS: usize = 2;

/// The connections to a server that allows several.
const CONNECTIONS: u16 = 4;

/// `nbd copy`.
#[derive(Args, Clone, Debug)]
#[command(
    about = "\
Copy a disk: an export, a file, a block device, or - for a stream.

Holes stay holes, and zeroes become holes. A file is created, or emptied first, unless only a part
is copied; everything else has to be large enough. Ctrl-C stops once requests in flight are done.",
    after_help = "\
Examples:
  nbd copy nbd://localhost/disk copy.img
  nbd copy --verify disk.img nbd+unix:///?socket=/tmp/nbd.sock
  nbd copy --resume disk.state --retries 10 nbds://localhost/disk disk.img
  nbd copy --only qemu:dirty-bitmap:b0 nbds://localhost/disk backup.img
  nbd copy nbd://localhost/disk - | gzip > disk.gz"
)]
pub(crate) struct Copy {
    /// A URI, a file, a block device, or - for standard input.
    #[arg(value_name = "SRC")]
    source: Target,
    /// A URI, a file, a block device, or - for standard output.
    #[arg(value_name = "DST")]
    destination: Target,
    /// Copy only ranges that this context marks, to an existing destination.
    #[arg(long, value_name = "CONTEXT", value_parser = context)]
    only: Option<ContextName>,
    /// Read the destination, too, and write only differing blocks.
    #[arg(long)]
    changed_only: bool,
    /// Record progress in FILE, and go on from there if it exists.
    #[arg(long, value_name = "FILE", conflicts_with = "hash")]
    resume: Option<PathBuf>,
    /// Attempts to replace a connection that is lost.
    #[arg(long, value_name = "N", default_value_t = 0)]
    retries: u32,
    /// Read both sides again at the end and compare them.
    #[arg(long)]
    verify: bool,
    /// Print the SHA-256 of the data.
    #[arg(long, conflicts_with = "only")]
    hash: bool,
    /// Leave it to the destination when it puts data on stable storage.
    #[arg(long, conflicts_with = "resume")]
    no_flush: bool,
    /// Look for zeroes in blocks of this size, or with 0 not at all.
    #[arg(long, value_name = "SIZE", default_value = "4K", value_parser = size::parse)]
    sparse: u64,
    /// Have space allocated for zeroes, too.
    #[arg(long)]
    allocate: bool,
    /// Rely on a destination that reads as zeroes everywhere.
    #[arg(long, conflicts_with_all = ["allocate", "only", "changed_only"])]
    destination_is_zero: bool,
    /// Read no more bytes in a second.
    #[arg(long, value_name = "SIZE", value_parser = size::parse)]
    limit_rate: Option<u64>,
    #[command(flatten)]
    flight: Flight,
    /// The way to show progress.
    #[arg(long, value_name = "HOW")]
    progress: Option<Mode>,
    #[command(flatten)]
    connect: Connect,
}

/// Limits of requests under way at once.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct Flight {
    /// The connections to each server that allows several [default: 4].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    connections: Option<u16>,
    /// The requests in flight [default: as few as are fast].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    requests: Option<u16>,
    /// The threads, by default half as many as there are processors, but no more than 2.
    #[arg(long, value_name = "N", hide = true, value_parser = clap::value_parser!(u16).range(1..=64))]
    threads: Option<u16>,
    /// The length of a request.
    #[arg(long, value_name = "SIZE", default_value = "512K", value_parser = request_size)]
    request_size: u64,
}

impl Flight {
    /// Threads share the connections of both sides. Between two servers they leave processors to
    /// these; a file is read or written by the threads themselves.
    pub(crate) fn threads(&self, has_file: bool) -> usize {
        let processors = thread::available_parallelism().map_or(1, usize::from);
        let fitting = if has_file { processors } else { processors / 2 }.min(THREADS);
        let threads = self.threads.map_or(fitting, usize::from);
        threads.clamp(1, self.connections(1))
    }

    /// Number of connections of each thread.
    pub(crate) fn connections(&self, threads: usize) -> usize {
        usize::from(self.connections.unwrap_or(CONNECTIONS)).div_ceil(threads)
    }

    /// Whether fewer connections will do.
    pub(crate) const fn is_default(&self) -> bool {
        self.connections.is_none()
    }

    /// Number of requests under way at once, if the user has set it.
    pub(crate) fn requests(&self) -> Option<usize> {
        self.requests.map(usize::from)
    }

    pub(crate) fn request_size(&self) -> u64 {
        self.request_size
    }
}

fn request_size(text: &str) -> Result<u64, String> {
    match size::parse(text)? {
        len if (4096..=32 << 20).contains(&len) && len.is_power_of_two() => Ok(len),
        _ => Err("expected a power of two from 4K to 32M".to_owned()),
    }
}

/// The name of a context that marks something.
fn context(text: &str) -> Result<ContextName, String> {
    let name: ContextName = text.parse().map_err(|error| format!("{error}"))?;
    if name == ContextName::base_allocation() {
        return Err("base:allocation is heeded without this, and marks nothing".to_owned());
    }
    Ok(name)
}

impl Copy {
    pub(crate) fn run(self, common: &Common) -> Result {
        let progress = Progress::new(self.progress, common.quiet);
        runtime::block_on(self.copy(Arc::new(progress)))
    }

    async fn copy(self, progress: Arc<Progress>) -> Result {
        if self.verify && self.destination.is_stream() {
            return Err(Error::new("--verify needs a destination that can be read"));
        }
        let single = self.hash || self.source.is_stream() || self.destination.is_stream();
        let sides = [&self.source, &self.destination];
        let has_file = sides.iter().any(|side| matches!(side, Target::Path(_)));
        let threads = if single {
            1
        } else {
            self.flight.threads(has_file)
        };
        let found = self
            .resume
            .as_deref()
            .map(State::load)
            .transpose()?
            .flatten();
        let ends = Ends::new(&self, threads, found.is_some());
        let (source, sink, is_zero) = ends.open().await?;
        let threads = match (&source, &sink) {
            (source, sink) if source.is_shareable() && sink.is_shareable() => threads,
            _ => 1,
        };
        let record = Record::new(&self, &source, &sink, found)?;
        let size = source.size();
        let left = record.left(size.unwrap_or(0));
        progress.begin("copy", size, size.unwrap_or(0) - left.len());
        let job = Arc::new(Job {
            settings: Settings {
                requests: self.flight.requests(),
                request_size: self.flight.request_size(),
                sparse: self.sparse,
                allocate: self.allocate,
                is_zero: !self.allocate && (is_zero || self.destination_is_zero),
                changed_only: self.changed_only,
                only: self.only.clone(),
                flush: !self.no_flush,
            },
            work: Work::new(&left, threads),
            pace: self.limit_rate.map(Pace::new),
            progress,
            record,
        });
        let digest = self.hash || self.verify && self.source.is_stream();
        let worker = Worker::new(&job, source, sink, digest);
        let copied = attend(
            &job.work,
            &job.progress,
            run(&job, &worker, &ends, threads, self.flight.is_default()),
        )
        .await;
        if let Err(error) = copied {
            self.tell(&job, &error);
            return Err(error);
        }
        if self.verify {
            let (source, sink) = worker.ends();
            verify::verify(&job, &source, &sink, worker.digest().as_deref()).await?;
        }
        worker.close().await;
        job.record.finish()?;
        if let Some(digest) = worker.digest().filter(|_| self.hash) {
            let line = format!("{digest}  {}\n", self.source);
            if self.destination.is_stream() {
                say(format_args!("{}", line.trim_end()));
            } else {
                output::print(&line)?;
            }
        }
        job.progress.end();
        Ok(Answer::Yes)
    }

    /// Says how far it came.
    fn tell(&self, job: &Job, error: &Error) {
        job.progress.clear();
        let what = match error {
            Error::Output(_) => return,
            Error::Interrupted => "stopped",
            _ => "failed",
        };
        let done = job.progress.done();
        let of = match job.progress.total() {
            Some(total) => format!(" of {}", Size(total)),
            None => String::new(),
        };
        let advice = match &self.resume {
            Some(file) if job.record.is_kept() => {
                format!("; the ranges on stable storage are in {}", file.display())
            }
            _ => String::new(),
        };
        say(format_args!(
            "{what} when {}{of} were copied{advice}",
            Size(done)
        ));
    }
}

/// Copies on this thread and on as many others as were asked for.
async fn run(
    job: &Arc<Job>,
    worker: &Worker,
    ends: &Ends,
    threads: usize,
    one_is_enough: bool,
) -> Result<()> {
    let (tell, mut ended) = mpsc::unbounded_channel();
    for _ in 1..threads {
        let (job, ends, tell) = (job.clone(), ends.clone(), tell.clone());
        let (source, sink) = worker.ends();
        let thread = thread::Builder::new().name("copy".into());
        let started = thread.spawn(move || {
            let copied = runtime::block_on(async {
                let opened = ends.open_again(&source, &sink).await;
                let (source, sink) = match opened {
                    Err(error) if one_is_enough => {
                        tracing::warn!("{error}, and one thread goes on");
                        return Ok(());
                    }
                    opened => opened?,
                };
                let worker = Worker::new(&job, source, sink, false);
                worker.run().await?;
                worker.close().await;
                Ok(())
            });
            if copied.is_err() {
                job.work.stop();
            }
            // The other side is gone if the user did not want to wait.
            let _ = tell.send(copied);
        });
        started.step(|| "cannot start a thread")?;
    }
    drop(tell);
    let mut copied = worker.run().await;
    if copied.is_err() {
        job.work.stop();
    }
    while let Some(other) = ended.recv().await {
        copied = copied.and(other);
    }
    copied
}
