//! A child process that runs until it is stopped.

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    thread::{self, ThreadId},
    time::{Duration, Instant},
};

/// The interval of polling for a condition without an event.
pub(crate) const POLL: Duration = Duration::from_millis(5);

/// The timeout of a process that becomes ready or ends; a loaded machine needs some of it.
const LIMIT: Duration = Duration::from_secs(20);

/// The processes that run, by the thread that started them: see [`kill_started_by`].
static LIVE: Mutex<Vec<(ThreadId, Weak<Process>)>> = Mutex::new(Vec::new());

/// The way to stop a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// By `SIGKILL`.
    Kill,
    /// By the end of its standard input, which also comes when the tests themselves are killed.
    EndOfInput,
}

/// A running child, stopped on drop.
#[derive(Debug)]
pub(crate) struct Process {
    command: String,
    child: Mutex<Child>,
    stop: Stop,
    log: PathBuf,
}

impl Process {
    /// Starts it with everything it prints appended to the file `log`.
    pub(crate) fn spawn(mut command: Command, stop: Stop, log: &Path) -> Arc<Self> {
        let open = || -> io::Result<File> { File::options().create(true).append(true).open(log) };
        let open = || open().expect("a file in our own directory can be opened");
        let stdin = match stop {
            Stop::Kill => Stdio::null(),
            Stop::EndOfInput => Stdio::piped(),
        };
        let child = command
            .stdin(stdin)
            .stdout(open())
            .stderr(open())
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?} could not be started: {error}"));

        let process = Arc::new(Self {
            command: format!("{command:?}"),
            child: Mutex::new(child),
            stop,
            log: log.to_owned(),
        });
        let mut live = lock(&LIVE);
        live.retain(|(_, process)| process.strong_count() > 0);
        live.push((thread::current().id(), Arc::downgrade(&process)));
        process
    }

    /// Waits for `ready` to hold.
    ///
    /// # Errors
    ///
    /// Its exit status, if it ended first.
    ///
    /// # Panics
    ///
    /// When neither happens in time.
    pub(crate) fn wait_until(&self, ready: impl Fn() -> bool) -> Result<(), ExitStatus> {
        let start = Instant::now();
        loop {
            if ready() {
                return Ok(());
            }
            if let Some(status) = self.try_wait() {
                return Err(status);
            }
            assert!(
                start.elapsed() < LIMIT,
                "{} was not ready within {LIMIT:?}\n{}",
                self.command,
                self.printed()
            );
            thread::sleep(POLL);
        }
    }

    /// Its exit status, if it has ended.
    pub(crate) fn try_wait(&self) -> Option<ExitStatus> {
        lock(&self.child)
            .try_wait()
            .expect("our own child can be waited for")
    }

    /// Stops it and waits for its end.
    pub(crate) fn stop(&self) {
        let mut child = lock(&self.child);
        if self.stop == Stop::EndOfInput {
            drop(child.stdin.take());
            let start = Instant::now();
            while matches!(child.try_wait(), Ok(None)) && start.elapsed() < LIMIT {
                thread::sleep(POLL);
            }
        }
        // Both fail only for a child that has ended, which is the goal.
        drop(child.kill());
        drop(child.wait());
    }

    /// Its command line.
    pub(crate) fn command(&self) -> &str {
        &self.command
    }

    /// Everything it has printed so far.
    pub(crate) fn printed(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.stop();
        if thread::panicking() {
            eprintln!("{} printed:\n{}", self.command, self.printed());
        }
    }
}

/// Polls for a condition that sends no event.
///
/// # Panics
///
/// When it does not come in time.
pub(crate) fn wait_for(what: &str, holds: impl Fn() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < LIMIT, "{what} has not come in {LIMIT:?}");
        thread::sleep(POLL);
    }
}

/// Stops all processes that `thread` has started and not stopped itself.
pub(crate) fn kill_started_by(thread: ThreadId) {
    // Collected first: the last reference to a process may be dropped here, which must not happen
    // under the lock.
    let processes: Vec<_> = lock(&LIVE)
        .iter()
        .filter(|(starter, _)| *starter == thread)
        .filter_map(|(_, process)| process.upgrade())
        .collect();
    for process in processes {
        process.stop();
        eprintln!("{} printed:\n{}", process.command, process.printed());
    }
}

/// A panic while a lock was held leaves nothing half done here.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
