//! Servers that this side starts.

use rustix::process::{Pid, Signal, kill_process};
use std::{
    fs::DirBuilder,
    io,
    os::{
        fd::OwnedFd,
        unix::{
            fs::DirBuilderExt,
            net::{UnixListener, UnixStream},
        },
    },
    path::PathBuf,
    process::{self, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

/// Time in which a server has to end before it is killed.
const GRACE: Duration = Duration::from_secs(5);

/// A server that this side started. It is ended when the value is dropped, which has to happen
/// after the connection is closed.
#[derive(Debug)]
pub(crate) struct Child {
    /// `None` when it is being ended.
    process: Option<process::Child>,
    /// It ends when its only connection is closed.
    ends_by_itself: bool,
    /// The thread that drops it must not wait, so that another one does.
    pub(crate) ends_aside: bool,
}

impl Child {
    /// Starts a server that serves one connection on its standard input and output.
    pub(crate) fn spawn(mut command: Command) -> io::Result<(OwnedFd, Self)> {
        let (ours, theirs) = UnixStream::pair()?;
        let output = theirs.try_clone()?;
        let process = command
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::from(OwnedFd::from(output)))
            .spawn()?;
        drop(command); // which still holds the server's end
        Ok((ours.into(), Self::new(process, true)))
    }

    /// Starts a server that takes a listening socket from its parent.
    pub(crate) fn activate(command: &Command) -> io::Result<(OwnedFd, Self)> {
        let directory = PrivateDirectory::new()?;
        let path = directory.0.join("socket");
        let listener = UnixListener::bind(&path)?;
        // Before the server runs, so that one that ends at once does so during the greeting of a connection that was
        // made.
        let stream = UnixStream::connect(&path)?;
        // The server expects the socket as descriptor 3 and its own number in the environment,
        // neither of which can be arranged from here without help of the shell.
        let mut shell = Command::new("/bin/sh");
        shell
            .arg("-c")
            .arg(r#"export LISTEN_FDS=1 LISTEN_PID=$$; exec "$0" "$@" 3<&0 </dev/null"#)
            .arg(command.get_program())
            .args(command.get_args())
            .stdin(Stdio::from(OwnedFd::from(listener)));
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => shell.env(name, value),
                None => shell.env_remove(name),
            };
        }
        if let Some(directory) = command.get_current_dir() {
            shell.current_dir(directory);
        }
        let server = Self::new(shell.spawn()?, false);
        drop(shell); // which still holds the listening socket
        Ok((stream.into(), server))
    }

    const fn new(process: process::Child, ends_by_itself: bool) -> Self {
        Self {
            process: Some(process),
            ends_by_itself,
            ends_aside: false,
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let Some(process) = self.process.take() else {
            return;
        };
        if !self.ends_by_itself {
            let _ = kill_process(Pid::from_child(&process), Signal::TERM);
        }
        if self.ends_aside {
            // Without a thread, the process is left to itself.
            let name = "nbd-child".to_owned();
            let _ = thread::Builder::new().name(name).spawn(|| end(process));
        } else {
            end(process);
        }
    }
}

/// Waits for a process that was sent SIGTERM.
fn end(mut process: process::Child) {
    let deadline = Instant::now() + GRACE;
    while Instant::now() < deadline {
        match process.try_wait() {
            Ok(None) => thread::sleep(Duration::from_millis(2)),
            Ok(Some(_)) | Err(_) => return,
        }
    }
    let _ = process.kill();
    let _ = process.wait();
}

/// A directory that no other user can look into, for as long as the value lives.
struct PrivateDirectory(PathBuf);

impl PrivateDirectory {
    fn new() -> io::Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("nbd-{}-{count}", process::id());
        let path = std::env::temp_dir().join(name);
        DirBuilder::new().mode(0o700).create(&path)?;
        Ok(Self(path))
    }
}

impl Drop for PrivateDirectory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
