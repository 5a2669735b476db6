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
    cli::Common,
    disk::is_same_file,
    embedded::{Embedded, Pair},
    interrupt::run_until_interrupted,
    outcome::{Answer, Error, Result, say},
    output,
    progress::Progress,
    runtime,
    size::{self, Size},
    target::Target,
    threads::share,
    transfer::Transfer,
    work::Work,
};
use clap::Args;
use ends::Ends;
use nbd_tokio::ContextName;
use pace::Pace;
use record::{Record, State};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};
use worker::{Job, Settings, Worker};

/// `nbd copy`.
#[derive(Args, Clone, Debug)]
#[command(
    about = "Copy a disk: an export, a file, a block device, or - for a stream",
    long_about = "\
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
    #[arg(value_name = "SRC", requires = "destination")]
    source: Option<Target>,
    /// A URI, a file, a block device, or - for standard output.
    #[arg(value_name = "DST")]
    destination: Option<Target>,
    #[command(flatten)]
    options: Options,
}

/// Settings of a copy.
#[derive(Args, Clone, Debug)]
struct Options {
    /// Copy ranges that CONTEXT marks.
    ///
    /// Nothing but ranges that this meta context marks is copied, to a destination that exists.
    #[arg(long, value_name = "CONTEXT", value_parser = context)]
    only: Option<ContextName>,
    /// Read DST, too, and write only changes.
    ///
    /// Only blocks that differ are written.
    #[arg(long)]
    changed_only: bool,
    /// Keep progress in FILE, and go on from there.
    ///
    /// The file has the ranges that are on stable storage. If it exists, the copy goes on from there; it
    /// is removed when the copy is complete.
    #[arg(long, value_name = "FILE", conflicts_with = "hash")]
    resume: Option<PathBuf>,
    /// Read both sides again, and compare them.
    #[arg(long)]
    verify: bool,
    /// Print the SHA-256 of the data.
    #[arg(long, conflicts_with = "only")]
    hash: bool,
    /// Leave stable storage to the destination.
    ///
    /// The copy is complete before the destination has put all data on stable storage.
    #[arg(long, conflicts_with = "resume")]
    no_flush: bool,
    /// Size of zeroes to look for, 0: none.
    ///
    /// Blocks of this size become holes if they are zero; with 0, only holes of the source do.
    #[arg(long, value_name = "SIZE", default_value = "4K", value_parser = size::parse)]
    sparse: u64,
    /// Allocate space for zeroes, too.
    #[arg(long)]
    allocate: bool,
    /// Rely on DST to read as zeroes everywhere.
    ///
    /// Zeroes are not written then.
    #[arg(long, conflicts_with_all = ["allocate", "only", "changed_only"])]
    destination_is_zero: bool,
    /// Limit of bytes per second.
    #[arg(long, value_name = "SIZE", value_parser = size::parse_positive)]
    limit_rate: Option<u64>,
    #[command(flatten)]
    transfer: Transfer,
}

/// The name of a context that marks something.
fn context(text: &str) -> Result<ContextName, String> {
    let name: ContextName = text.parse().map_err(|error| format!("{error}"))?;
    if name == ContextName::base_allocation() {
        return Err("base:allocation is heeded without this, and marks nothing".to_owned());
    }
    Ok(name)
}

/// A copy, and both of its ends.
#[derive(Clone, Debug)]
struct Task {
    source: Target,
    destination: Target,
    options: Options,
}

impl Copy {
    pub(crate) fn run(self, common: &Common) -> Result {
        let Self {
            source,
            destination,
            options,
        } = self;
        let pair = Pair::new([source, destination], Embedded::blank)?;
        let [source, destination] = pair.targets.clone();
        let progress = Arc::new(options.transfer.progress(common.quiet));
        let task = Task {
            source,
            destination,
            options,
        };
        runtime::block_on(task.copy(progress))
    }
}

impl Task {
    async fn copy(self, progress: Arc<Progress>) -> Result {
        let options = &self.options;
        if options.verify && self.destination.is_stream() {
            return Err(Error::new("--verify needs a destination that can be read"));
        }
        // Before the destination is emptied.
        if let Some(file) = &options.resume {
            self.check_resume(file)?;
        }
        let single = options.hash || self.source.is_stream() || self.destination.is_stream();
        let sides = [&self.source, &self.destination];
        let has_file = sides.iter().any(|side| matches!(side, Target::Path(_)));
        let threads = if single {
            1
        } else {
            options.transfer.threads(has_file)
        };
        let found = options
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
                requests: options.transfer.requests(),
                most: window::most(options.transfer.request_size(), threads),
                request_size: options.transfer.request_size(),
                sparse: options.sparse,
                allocate: options.allocate,
                is_zero: !options.allocate && (is_zero || options.destination_is_zero),
                changed_only: options.changed_only,
                only: options.only.clone(),
                flush: !options.no_flush,
            },
            work: Arc::new(Work::new(&left, threads)),
            pace: options.limit_rate.map(Pace::new),
            progress,
            record,
        });
        let digest = options.hash || options.verify && self.source.is_stream();
        let worker = Worker::new(&job, source, sink, digest);
        let copied = run_until_interrupted(
            &job.work,
            &job.progress,
            run(
                &job,
                &worker,
                &ends,
                threads,
                options.transfer.may_be_fewer(),
            ),
        )
        .await;
        if let Err(error) = copied {
            self.report_failure(&job, &error);
            return Err(error);
        }
        if options.verify {
            let (source, sink) = worker.ends();
            let digest = worker.digest();
            if let Some(wrong) = verify::verify(&job, &source, &sink, digest.as_deref()).await? {
                // The next copy must not rely on it.
                job.record.finish()?;
                return Err(wrong);
            }
        }
        worker.close().await;
        job.record.finish()?;
        if let Some(digest) = worker.digest().filter(|_| options.hash) {
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

    /// Checks that progress can be kept in a file, which must not be one of the disks.
    fn check_resume(&self, file: &Path) -> Result<()> {
        for side in [&self.source, &self.destination] {
            if side.is_stream() {
                return Err(Error::new(
                    "--resume is for disks: a stream has no second beginning",
                ));
            }
            let Target::Path(path) = side else { continue };
            // One that is not there yet has only its name.
            let is_same = absolute(path).is_some_and(|path| absolute(file) == Some(path));
            if is_same || is_same_file(path, file) {
                return Err(Error::new(format!(
                    "expected a file of its own for --resume, got {}, which is copied",
                    file.display()
                )));
            }
        }
        Ok(())
    }

    /// Prints how far the copy came.
    fn report_failure(&self, job: &Job, error: &Error) {
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
        let advice = match &self.options.resume {
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

/// The absolute path of a file that need not be there, without links in its directory.
fn absolute(path: &Path) -> Option<PathBuf> {
    let path = std::path::absolute(path).ok()?;
    let directory = path.parent()?.canonicalize().ok()?;
    Some(directory.join(path.file_name()?))
}

/// Copies on this thread and on as many others as were asked for.
async fn run(
    job: &Arc<Job>,
    worker: &Worker,
    ends: &Ends,
    threads: usize,
    one_is_enough: bool,
) -> Result<()> {
    let another = || {
        let (job, ends, (source, sink)) = (job.clone(), ends.clone(), worker.ends());
        move || {
            runtime::block_on(async {
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
            })
        }
    };
    share(&job.work, threads - 1, worker.run(), another)
        .await
        .map(drop)
}
