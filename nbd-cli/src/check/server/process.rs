//! A server that is started for the check, killed and started again.

use super::Server;
use crate::{
    check::rule::{Checked, Fault, not},
    outcome::{Context, Error, Result},
};
use nbd_tokio::nbd_proto::uri::Address;
use rustix::process::{Pid, Signal, kill_process_group};
use std::{
    cell::RefCell,
    ffi::{OsStr, OsString},
    fs,
    os::unix::{ffi::OsStrExt, process::CommandExt},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

/// Interval at which a connection is tried while the server starts.
const INTERVAL: Duration = Duration::from_millis(5);

/// The command, and the process if it runs.
#[derive(Debug)]
pub(super) struct Process {
    command: Vec<OsString>,
    child: RefCell<Option<Child>>,
}

impl Process {
    pub(super) fn new(command: &[OsString]) -> Self {
        Self {
            command: command.to_vec(),
            child: RefCell::new(None),
        }
    }

    fn start(&self) -> Result<()> {
        let mut words = self.command.iter();
        let mut command = Command::new(words.next().cloned().unwrap_or_default());
        command
            .args(words)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .process_group(0);
        let started = command.spawn();
        let child = started.step(|| format!("cannot start {command:?}"))?;
        *self.child.borrow_mut() = Some(child);
        Ok(())
    }

    /// Kills it with all that it has started.
    fn kill(&self) {
        if let Some(mut child) = self.child.borrow_mut().take() {
            // It may have ended before.
            let _ = kill_process_group(Pid::from_child(&child), Signal::KILL);
            let _ = child.wait();
        }
    }

    /// Its exit status, if it has ended.
    fn ended(&self) -> Option<String> {
        let mut child = self.child.borrow_mut();
        let status = child.as_mut()?.try_wait().ok()??;
        Some(status.to_string())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Server {
    /// Starts the server, if the check does that, and waits until it takes connections.
    pub(super) fn start(&self) -> Result<()> {
        let Some(process) = &self.process else {
            return Ok(());
        };
        if self.dial().is_ok() {
            return Err(Error::new(format!(
                "a server is at {} before the command is started",
                self.uri.redacted()
            )));
        }
        // A server that was killed has left its socket behind.
        if let Address::Unix { path, .. } = self.uri.address() {
            let _ = fs::remove_file(OsStr::from_bytes(path));
        }
        process.start()?;
        let start = Instant::now();
        while self.dial().is_err() {
            if let Some(status) = process.ended() {
                return Err(Error::new(format!(
                    "the server has ended ({status}); expected one in the foreground, at {}",
                    self.uri.redacted()
                )));
            }
            if start.elapsed() > self.time {
                return Err(Error::new(format!(
                    "the server takes no connections at {} (--rule-timeout)",
                    self.uri.redacted()
                )));
            }
            thread::sleep(INTERVAL);
        }
        Ok(())
    }

    /// Kills the server and starts it again.
    pub(super) fn restart(&self) -> Checked {
        self.can_restart()?;
        if let Some(process) = &self.process {
            process.kill();
        }
        self.start()
            .map_err(|error| Fault::Must(format!("after it was killed: {error}")))
    }

    /// The rule kills the server.
    pub(super) fn can_restart(&self) -> Checked {
        if self.process.is_none() {
            return not("needs a command that starts the server, behind --");
        }
        Ok(())
    }
}
