//! Notifications that the server is ready.

use crate::{
    outcome::{Context, Error, Result},
    output,
};
use clap::Args;
use nbd_tokio::Uri;
use std::{
    env,
    ffi::OsStr,
    fs::{self, OpenOptions},
    io::{self, ErrorKind, Write},
    os::unix::{ffi::OsStrExt, net::UnixDatagram},
    path::PathBuf,
    process,
};

/// Receivers of notifications.
#[derive(Args, Debug)]
pub(super) struct Notify {
    /// Descriptor for a line once it serves.
    ///
    /// A line is written there once clients can connect. systemd is notified anyway.
    #[arg(long, value_name = "FD")]
    ready_fd: Option<u32>,
    /// File for the number of this process.
    #[arg(long, value_name = "FILE")]
    pid_file: Option<PathBuf>,
}

/// State to be undone in the end.
#[derive(Debug)]
pub(super) struct ReadyGuard {
    pid_file: Option<PathBuf>,
}

impl Notify {
    /// Notifies all receivers that clients can connect.
    pub(super) fn ready(&self) -> Result<ReadyGuard> {
        let ready = ReadyGuard {
            pid_file: self.pid_file.clone(),
        };
        if let Some(path) = &self.pid_file {
            let written = fs::write(path, format!("{}\n", process::id()));
            written.step(|| format!("cannot write {}", path.display()))?;
        }
        if let Some(fd) = self.ready_fd {
            // Opened anew, because a number is no proof that the descriptor is ours to close.
            let opened = OpenOptions::new()
                .append(true)
                .open(format!("/dev/fd/{fd}"));
            let written = opened.and_then(|mut ready| ready.write_all(b"\n"));
            written.step(|| format!("cannot write to descriptor {fd} of --ready-fd"))?;
        }
        notify_manager(&format!("READY=1\nMAINPID={}", process::id()));
        Ok(ready)
    }
}

impl Drop for ReadyGuard {
    fn drop(&mut self) {
        if let Some(path) = &self.pid_file {
            // No caller is left to report it to.
            let _ = fs::remove_file(path);
        }
    }
}

/// Notifies systemd, or another manager of services, of a change of state (`sd_notify`). It may be
/// gone.
pub(super) fn notify_manager(state: &str) {
    if let Some(socket) = env::var_os("NOTIFY_SOCKET")
        && let Err(error) = send(&socket, state)
    {
        tracing::warn!("NOTIFY_SOCKET does not take messages: {error}");
    }
}

fn send(socket: &OsStr, state: &str) -> io::Result<()> {
    let sender = UnixDatagram::unbound()?;
    // A full queue must not hold the server up.
    sender.set_nonblocking(true)?;
    #[cfg(target_os = "linux")]
    if let Some(name) = socket.as_bytes().strip_prefix(b"@") {
        use std::os::{linux::net::SocketAddrExt, unix::net::SocketAddr};
        let address = SocketAddr::from_abstract_name(name)?;
        return sender.send_to_addr(state.as_bytes(), &address).map(drop);
    }
    sender.send_to(state.as_bytes(), socket).map(drop)
}

/// Prints where clients can connect, for people and scripts. The server goes on without readers.
pub(super) fn print(uris: &[Uri]) {
    let lines: String = uris.iter().map(|uri| format!("{uri}\n")).collect();
    match output::print(&lines) {
        Err(Error::Output(error)) if error.kind() != ErrorKind::BrokenPipe => {
            tracing::warn!(
                "the URIs of the server cannot be printed: {error}: {}",
                lines.trim_end()
            );
        }
        _ => {}
    }
}
