//! Signals that end a command, and the directories that are removed before.
//!
//! One thread waits for Ctrl-C and SIGTERM. It starts before the first directory is made, and holds a
//! lock while it removes directories and ends the process, so that there is no moment at which a signal
//! leaves one behind.

use crate::{
    outcome::{Context, Error, Result},
    progress::Progress,
    work::Work,
};
use signal_hook::{
    consts::{SIGINT, SIGTERM},
    iterator::Signals,
    low_level::emulate_default_handler,
};
use std::{
    fs,
    io::{self, ErrorKind},
    path::{Path, PathBuf},
    pin::pin,
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};
use tokio::{
    sync::mpsc,
    time::{MissedTickBehavior, interval, sleep},
};

/// Time for requests in flight to end after the user has stopped a command.
const GRACE: Duration = Duration::from_secs(10);

/// Attempts to remove a directory to which another thread adds a socket meanwhile.
const ATTEMPTS: usize = 100;

static STATE: Mutex<State> = Mutex::new(State {
    is_watching: false,
    directories: Vec::new(),
    catcher: None,
});

/// The state of this process for its signals.
struct State {
    /// Whether a thread waits for them.
    is_watching: bool,
    directories: Vec<PathBuf>,
    /// The command that stops by itself. Without one, a signal ends the process.
    catcher: Option<mpsc::UnboundedSender<()>>,
}

// Complete after every statement.
fn state() -> MutexGuard<'static, State> {
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}

impl State {
    fn watch(&mut self) -> io::Result<()> {
        if self.is_watching {
            return Ok(());
        }
        let mut signals = Signals::new([SIGINT, SIGTERM])?;
        let obey = move || signals.forever().for_each(|signal| state().obey(signal));
        thread::Builder::new().name("signals".into()).spawn(obey)?;
        self.is_watching = true;
        Ok(())
    }

    fn obey(&self, signal: i32) {
        match &self.catcher {
            // It may have ended.
            Some(catcher) => drop(catcher.send(())),
            None => {
                self.remove_directories();
                // The signal is all that a user has to know of.
                let _ = emulate_default_handler(signal);
            }
        }
    }

    fn remove_directories(&self) {
        self.directories.iter().for_each(|path| remove(path));
    }
}

fn remove(directory: &Path) {
    for _ in 0..ATTEMPTS {
        match fs::remove_dir_all(directory) {
            Err(error) if error.kind() == ErrorKind::DirectoryNotEmpty => {}
            // There is no better way to do it.
            _ => return,
        }
    }
}

/// Has Ctrl-C and SIGTERM, which end the process, remove its directories first.
pub(crate) fn remove_directories_when_interrupted() -> io::Result<()> {
    state().watch()
}

/// Removes all directories before the process ends at once.
pub(crate) fn remove_directories() {
    state().remove_directories();
}

/// A temporary directory, which is removed when this is dropped or a signal ends the process.
#[derive(Debug)]
pub(crate) struct Directory(PathBuf);

impl Directory {
    pub(crate) fn new(prefix: &str) -> io::Result<Self> {
        let mut state = state();
        let directory = tempfile::Builder::new().prefix(prefix).tempdir()?;
        let path = directory.keep();
        state.directories.push(path.clone());
        Ok(Self(path))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let mut state = state();
        remove(&self.0);
        state.directories.retain(|path| *path != self.0);
    }
}

/// Ctrl-C and SIGTERM for a command that stops by itself, until this is dropped.
#[derive(Debug)]
pub(crate) struct Catcher(mpsc::UnboundedReceiver<()>);

impl Catcher {
    pub(crate) fn new() -> Result<Self> {
        let (sender, receiver) = mpsc::unbounded_channel();
        let mut state = state();
        state.watch().step(|| "cannot listen for signals")?;
        state.catcher = Some(sender);
        Ok(Self(receiver))
    }

    /// Waits for a signal.
    pub(crate) async fn signal(&mut self) {
        // The sender is there as long as this.
        let _ = self.0.recv().await;
    }
}

impl Drop for Catcher {
    fn drop(&mut self) {
        state().catcher = None;
    }
}

/// Carries out `task` to its end. The first Ctrl-C or SIGTERM has `work` stop, so that the task ends
/// soon; the second one is not waited for.
pub(crate) async fn run_until_interrupted<T>(
    work: &Work,
    progress: &Progress,
    task: impl Future<Output = Result<T>>,
) -> Result<T> {
    let mut signals = Catcher::new()?;
    let mut ticks = interval(progress.interval());
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut task = pin!(task);
    loop {
        tokio::select! {
            biased;
            done = &mut task => return done,
            () = signals.signal() => break,
            _ = ticks.tick() => progress.show(),
        }
    }
    progress.message("stopping when requests in flight are done; once more stops at once");
    work.stop();
    let ended = tokio::select! {
        done = &mut task => done.map(drop),
        () = signals.signal() => Ok(()),
        () = sleep(GRACE) => Ok(()),
    };
    if let Err(error) = ended {
        progress.message(&error.to_string());
    }
    Err(Error::Interrupted)
}
