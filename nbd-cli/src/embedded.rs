//! A server in this process, for files, for disks on object storage and for those who only want to try
//! a command.

use crate::{
    interrupt::{self, Directory},
    object::Address,
    outcome::{Context, Result},
    sample,
    target::Target,
};
use nbd_blocking::{
    Listener, Server,
    exports::{Export, File, Memory},
    server::Stopper,
};
use nbd_object::{Disk, Options};
use nbd_tokio::Uri;
use std::{
    io,
    os::unix::ffi::OsStrExt,
    path::Path,
    sync::Arc,
    thread::{self, JoinHandle},
};
use tokio::runtime::Builder;

/// The message if there is no server, with a remedy.
const NOT_STARTED: &str = "cannot start a server in this process; is TMPDIR, or /tmp, a directory \
    that can be written, and of a short name?";

/// Serves an export at a Unix socket that only this user can reach, until it is dropped.
#[derive(Debug)]
pub(crate) struct Embedded {
    uri: Uri,
    stopper: Stopper,
    serving: Option<JoinHandle<io::Result<()>>>,
    /// The directory of the socket.
    _directory: Directory,
}

impl Embedded {
    /// Serves an export.
    pub(crate) fn new(export: Arc<dyn Export>) -> Result<Self> {
        let started = || {
            Self::start(|path| {
                let listener = Listener::bind_unix(path)?;
                let server = Server::single(export);
                Ok((server.stopper(), move || server.serve(listener)))
            })
        };
        started().step(|| NOT_STARTED)
    }

    /// Serves in a thread, at a socket of this path.
    fn start<S: FnOnce() -> io::Result<()> + Send + 'static>(
        prepare: impl FnOnce(&Path) -> io::Result<(Stopper, S)>,
    ) -> io::Result<Self> {
        interrupt::remove_directories_when_interrupted()?;
        let directory = Directory::new("nbd-")?;
        let path = directory.path().join("s");
        let uri = Uri::unix(path.as_os_str().as_bytes()).map_err(io::Error::other)?;
        let (stopper, serve) = prepare(&path)?;
        let serving = thread::Builder::new().name("server".into()).spawn(serve)?;
        Ok(Self {
            uri,
            stopper,
            serving: Some(serving),
            _directory: directory,
        })
    }

    /// A disk on object storage, for reading unless it is `writable`. It is made if it is not there and
    /// a size is given. This waits for the store, and must not be called by a task.
    pub(crate) fn object(address: &Address, writable: bool, size: Option<u64>) -> Result<Self> {
        let runtime = Builder::new_multi_thread().enable_all().build();
        let runtime = runtime.step(|| "cannot start the runtime")?;
        let opened = address.open_or_create(size, !writable, Options::new());
        let (_, disk) = runtime.block_on(opened)?;
        let started = Self::start(move |path| {
            let (listener, server) = {
                let _entered = runtime.enter();
                let server = nbd_tokio::Server::single_async(disk.clone());
                (nbd_tokio::Listener::bind_unix(path)?, server)
            };
            let stopper = server.stopper();
            let serve = move || {
                runtime.block_on(async {
                    server.serve(listener).await?;
                    flush(&disk).await
                })
            };
            Ok((stopper, serve))
        });
        started.step(|| NOT_STARTED)
    }

    /// A disk with a little in it, to try commands with.
    pub(crate) fn sample() -> Result<Self> {
        Self::new(Arc::new(sample::sample()))
    }

    /// A disk in memory that is as large, with nothing in it.
    pub(crate) fn blank() -> Result<Self> {
        Self::new(Arc::new(Memory::new(sample::SIZE)))
    }

    /// A file or a block device.
    pub(crate) fn file(path: &Path, writable: bool) -> Result<Self> {
        let opened = if writable {
            File::open(path)
        } else {
            File::open_read_only(path)
        };
        Self::new(Arc::new(
            opened.step(|| format!("cannot open {}", path.display()))?,
        ))
    }

    /// The URI to connect to.
    pub(crate) fn uri(&self) -> &Uri {
        &self.uri
    }
}

/// Puts the data that no client has flushed into the store.
async fn flush(disk: &Disk) -> io::Result<()> {
    if disk.is_read_only() {
        return Ok(());
    }
    let flushed = disk.flush().await;
    if let Err(error) = &flushed {
        tracing::error!("cannot flush: {error}");
    }
    flushed.map_err(io::Error::other)
}

/// Both disks of a command that needs two.
#[derive(Debug)]
pub(crate) struct Pair {
    pub(crate) targets: [Target; 2],
    /// Servers of the disks that are files or defaults, and no URIs.
    _servers: Vec<Embedded>,
}

impl Pair {
    /// Those that were named, or a disk to try the command with and a `second` one.
    pub(crate) fn new(
        named: [Option<Target>; 2],
        second: impl FnOnce() -> Result<Embedded>,
    ) -> Result<Self> {
        if let [Some(one), Some(other)] = named {
            return Ok(Self {
                targets: [one, other],
                _servers: Vec::new(),
            });
        }
        let servers = [Embedded::sample()?, second()?];
        Ok(Self {
            targets: servers
                .each_ref()
                .map(|server| Target::Server(server.uri.clone())),
            _servers: servers.into(),
        })
    }
}

impl Drop for Embedded {
    fn drop(&mut self) {
        self.stopper.stop();
        if let Some(serving) = self.serving.take() {
            // Its connections are over, so that there is nothing left to lose.
            let _ = serving.join();
        }
    }
}
