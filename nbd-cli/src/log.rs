//! Logs on standard error.

use crate::{
    cli::Common,
    outcome::{Error, Result},
};
use clap::ValueEnum;
use std::{
    io::{self, Write},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{self, Receiver, SyncSender, TrySendError},
    },
    thread,
    time::Duration,
};
use tracing_subscriber::{
    filter::{LevelFilter, Targets},
    fmt::{MakeWriter, writer::BoxMakeWriter},
    layer::SubscriberExt,
    util::SubscriberInitExt,
};

/// Lines of a server's that may wait to be written. Those beyond that are lost.
const WAITING: usize = 1024;

/// Time that a server waits in the end for its last lines to be written.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

/// Level and format of a server's log unless the user asks for others.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ServerLogging {
    pub(crate) level: LevelFilter,
    pub(crate) format: Format,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    Text,
    Json,
}

/// Waits for the last lines to be written when it is dropped.
#[must_use]
pub(crate) struct Logging(Option<Lines>);

/// Logs as much as was asked for, or as the variable `NBD_LOG` says. A server logs up to a level of its
/// own without being asked, and does not wait for standard error.
pub(crate) fn start(common: &Common, server: Option<ServerLogging>) -> Result<Logging> {
    let lines = server.and_then(|_| Lines::start());
    let writer = match &lines {
        Some(lines) => BoxMakeWriter::new(lines.clone()),
        None => BoxMakeWriter::new(io::stderr),
    };
    let layer = tracing_subscriber::fmt::layer()
        .with_writer(writer)
        .with_ansi(colours())
        .with_target(false)
        // It would panic where standard error cannot be written.
        .log_internal_errors(false);
    let subscriber = tracing_subscriber::registry().with(filter(common, server)?);
    match server.map_or(Format::Text, |server| server.format) {
        Format::Text => subscriber.with(layer).init(),
        Format::Json => subscriber.with(layer.json().flatten_event(true)).init(),
    }
    Ok(Logging(lines))
}

/// The events that are logged.
fn filter(common: &Common, server: Option<ServerLogging>) -> Result<Targets> {
    let all = |level: LevelFilter| Targets::new().with_default(level);
    if let Ok(level) = std::env::var("NBD_LOG")
        && common.verbose == 0
    {
        let level = level.parse().map_err(|_| {
            Error::new(format!(
                "expected NBD_LOG to be off, error, warn, info, debug or trace, got \"{level}\""
            ))
        })?;
        return Ok(all(level));
    }
    Ok(match (common.verbose, server) {
        (0, Some(_)) if common.quiet => all(LevelFilter::ERROR),
        // And the server's own events.
        (0, Some(server)) => all(server.level).with_target("nbd::", LevelFilter::INFO),
        (0, None) => all(LevelFilter::OFF),
        (1, _) => all(LevelFilter::INFO),
        (2, _) => all(LevelFilter::DEBUG),
        _ => all(LevelFilter::TRACE),
    })
}

/// Whether standard error takes colours.
fn colours() -> bool {
    anstream::stderr().current_choice() != anstream::ColorChoice::Never
}

/// Lines that a thread writes, so that no other one waits for standard error.
#[derive(Clone)]
struct Lines {
    sender: SyncSender<Line>,
    lost: Arc<AtomicU64>,
}

enum Line {
    Text(Vec<u8>),
    /// Drops its other end when all lines before it are written.
    End(#[expect(dead_code, reason = "it only has to be dropped")] SyncSender<()>),
}

impl Lines {
    /// `None` if there can be no thread.
    fn start() -> Option<Self> {
        let (sender, receiver) = mpsc::sync_channel(WAITING);
        let lost = Arc::<AtomicU64>::default();
        let of_thread = Arc::clone(&lost);
        let thread = thread::Builder::new().name("log".into());
        thread.spawn(move || write(&receiver, &of_thread)).ok()?;
        Some(Self { sender, lost })
    }
}

/// Writes lines as they come. Those that cannot be written are lost.
fn write(lines: &Receiver<Line>, lost: &AtomicU64) {
    let mut stderr = io::stderr();
    while let Ok(line) = lines.recv() {
        let Line::Text(text) = line else { continue };
        let _ = stderr.write_all(&text);
        match lost.swap(0, Ordering::Relaxed) {
            0 => {}
            lines => {
                let _ = writeln!(stderr, "{lines} lines are missing here");
            }
        }
    }
}

impl Write for Lines {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        if let Err(TrySendError::Full(_)) = self.sender.try_send(Line::Text(text.to_vec())) {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
        Ok(text.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

impl Drop for Logging {
    fn drop(&mut self) {
        if let Some(lines) = &self.0 {
            let (end, written) = mpsc::sync_channel(0);
            if lines.sender.try_send(Line::End(end)).is_ok() {
                // It never sends anything.
                let _ = written.recv_timeout(FLUSH_TIMEOUT);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_that_cannot_be_written_in_time_are_counted_and_hold_up_no_thread() {
        let (sender, receiver) = mpsc::sync_channel(2);
        let lost = Arc::<AtomicU64>::default();
        let mut lines = Lines { sender, lost };
        for _ in 0..5 {
            lines.write_all(b"line\n").unwrap();
        }
        assert_eq!(lines.lost.load(Ordering::Relaxed), 3);
        assert_eq!(receiver.try_iter().count(), 2);
        drop(receiver);
        lines.write_all(b"line\n").unwrap();
        drop(Logging(Some(lines)));
    }
}
