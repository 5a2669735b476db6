//! A command that uses the server.

use crate::outcome::{Answer, Context, Error, Result};
use nbd_blocking::server::Stopper;
use nbd_tokio::Uri;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};
use std::{
    ffi::OsString,
    os::unix::process::ExitStatusExt,
    process::{Child as Process, Command, ExitStatus},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
};

/// A process that was started together with the server.
#[derive(Debug)]
pub(super) struct Child {
    process: Mutex<Process>,
    pid: Pid,
    program: String,
}

impl Child {
    /// Starts a command with the variable `NBD_URI`, if there is one. When it ends, so does the server.
    pub(super) fn start(
        command: &[OsString],
        uri: Option<&Uri>,
        stopper: Stopper,
    ) -> Result<Option<Arc<Self>>> {
        let Some((program, arguments)) = command.split_first() else {
            return Ok(None);
        };
        let uri = uri.ok_or_else(|| Error::new("there is no URI for the command"))?;
        let program = program.display().to_string();
        let process = Command::new(&command[0])
            .args(arguments)
            .env("NBD_URI", uri.to_string())
            .spawn();
        let process = process.step(|| format!("cannot start {program}"))?;
        let pid = Pid::from_child(&process);
        let child = Arc::new(Self {
            process: Mutex::new(process),
            pid,
            program,
        });
        let waiter = thread::Builder::new()
            .name("command".into())
            .spawn(move || {
                // The process stays there, so that its number is not that of another one.
                let ended = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
                while let Err(rustix::io::Errno::INTR) = waitid(WaitId::Pid(pid), ended) {}
                stopper.stop();
            });
        if waiter.is_err() {
            child.terminate();
        }
        waiter.step(|| "cannot wait for the command")?;
        Ok(Some(child))
    }

    fn process(&self) -> MutexGuard<'_, Process> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks it to end, unless it has ended.
    pub(super) fn terminate(&self) {
        let mut process = self.process();
        if let Ok(None) = process.try_wait() {
            // It may not be ours any more, as with `sudo`; then its end is waited for all the same.
            let _ = kill_process(self.pid, Signal::TERM);
        }
    }

    /// Waits for its end.
    pub(super) fn wait(&self) -> Result {
        let ended = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
        // Not with the lock, so that it can be asked to end meanwhile.
        while let Err(rustix::io::Errno::INTR) = waitid(WaitId::Pid(self.pid), ended) {}
        let status = self.process().wait();
        let status = status.step(|| format!("cannot wait for {}", self.program))?;
        Ok(Answer::Code(code(status)))
    }
}

/// The exit code as a shell has it.
fn code(status: ExitStatus) -> u8 {
    let code = match (status.code(), status.signal()) {
        (Some(code), _) => code,
        (None, Some(signal)) => 128 + signal,
        (None, None) => 2,
    };
    u8::try_from(code).unwrap_or(u8::MAX)
}
