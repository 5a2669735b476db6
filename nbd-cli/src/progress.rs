//! The progress of long work.

use crate::outcome::say;
use clap::ValueEnum;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use std::{
    io::{IsTerminal, stderr},
    sync::{
        Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// The way to show it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Mode {
    Bar,
    Json,
    None,
}

/// The progress of some work, in bytes. Threads add to it, and one shows it.
#[derive(Debug)]
pub(crate) struct Progress {
    mode: Mode,
    quiet: bool,
    bar: OnceLock<ProgressBar>,
    phase: Mutex<Phase>,
    done: AtomicU64,
}

/// The present phase of the work.
#[derive(Clone, Copy, Debug)]
struct Phase {
    name: &'static str,
    total: Option<u64>,
    /// Bytes that were done already when it began.
    before: u64,
    began: Instant,
}

#[derive(Serialize)]
struct Line {
    schema: u32,
    event: &'static str,
    phase: &'static str,
    bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    size: Option<u64>,
    bytes_per_second: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    seconds_left: Option<u64>,
}

impl Progress {
    /// Shows it on standard error in this way, by default with a bar if that is a terminal.
    pub(crate) fn new(mode: Option<Mode>, quiet: bool) -> Self {
        let mode = match mode {
            _ if quiet => Mode::None,
            Some(mode) => mode,
            None if stderr().is_terminal() => Mode::Bar,
            None => Mode::None,
        };
        Self {
            mode,
            quiet,
            bar: OnceLock::new(),
            phase: Mutex::new(Phase {
                name: "",
                total: None,
                before: 0,
                began: Instant::now(),
            }),
            done: AtomicU64::new(0),
        }
    }

    /// Begins something of so many bytes, where that is known, of which some were done before.
    pub(crate) fn begin(&self, name: &'static str, total: Option<u64>, before: u64) {
        self.clear();
        *self.phase() = Phase {
            name,
            total,
            before,
            began: Instant::now(),
        };
        self.done.store(before, Ordering::Relaxed);
        if self.mode == Mode::Bar {
            let bar = self
                .bar
                .get_or_init(|| ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr()));
            let template = if total.is_some() {
                "{msg} [{bar:40}] {percent}% {binary_bytes}/{binary_total_bytes}, \
                 {binary_bytes_per_sec}, {eta} left"
            } else {
                "{msg} {binary_bytes}, {binary_bytes_per_sec}"
            };
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style.progress_chars("=> "));
            }
            bar.set_message(name);
            bar.set_length(total.unwrap_or(0));
            bar.reset();
            bar.set_position(before);
            bar.reset_eta();
        }
    }

    pub(crate) fn add(&self, bytes: u64) {
        self.done.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    pub(crate) fn total(&self) -> Option<u64> {
        self.phase().total
    }

    /// Interval at which to show it.
    pub(crate) fn interval(&self) -> Duration {
        match self.mode {
            Mode::Bar => Duration::from_millis(100),
            Mode::Json => Duration::from_secs(1),
            Mode::None => Duration::from_secs(3600),
        }
    }

    pub(crate) fn show(&self) {
        match self.mode {
            Mode::Bar => {
                if let Some(bar) = self.bar.get() {
                    bar.set_position(self.done());
                }
            }
            Mode::Json => self.line("progress"),
            Mode::None => {}
        }
    }

    /// Says something beside the bar, if anything is to be said.
    pub(crate) fn message(&self, line: &str) {
        let print = || say(format_args!("{line}"));
        match self.bar.get() {
            Some(bar) => bar.suspend(print),
            None if self.quiet => {}
            None => print(),
        }
    }

    /// Takes the bar away, so that something else can be printed.
    pub(crate) fn clear(&self) {
        if let Some(bar) = self.bar.get() {
            bar.finish_and_clear();
        }
    }

    /// Shows that all is done.
    pub(crate) fn end(&self) {
        match self.mode {
            Mode::Bar => {
                if let Some(bar) = self.bar.get() {
                    bar.set_position(self.done());
                    bar.finish();
                }
            }
            Mode::Json => self.line("done"),
            Mode::None => {}
        }
    }

    fn line(&self, event: &'static str) {
        let Phase {
            name: phase,
            total: size,
            before,
            began,
        } = *self.phase();
        let bytes = self.done();
        let elapsed = began.elapsed().as_millis().max(1);
        let rate = u64::try_from(u128::from(bytes.saturating_sub(before)) * 1000 / elapsed)
            .unwrap_or(u64::MAX);
        let left = size.map(|size| size.saturating_sub(bytes));
        let line = Line {
            schema: crate::output::SCHEMA,
            event,
            phase,
            bytes,
            size,
            bytes_per_second: rate,
            seconds_left: left.and_then(|left| left.checked_div(rate)),
        };
        if let Ok(line) = serde_json::to_string(&line) {
            say(format_args!("{line}"));
        }
    }

    // Complete after every statement.
    fn phase(&self) -> MutexGuard<'_, Phase> {
        self.phase.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
