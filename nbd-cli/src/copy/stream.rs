//! Streams: files without a size that are read or written once, from their beginning to their end.

use crate::outcome::{Context, Error, Result};
use nbd_tokio::bytes::Bytes;
use std::{
    fs::File,
    io::{self, ErrorKind, Read, Write},
    os::fd::AsFd,
    path::Path,
    sync::Arc,
    thread,
};
use tokio::sync::{Mutex, mpsc};

/// Number of buffers that are read ahead.
const AHEAD: usize = 4;

/// A stream to be read.
#[derive(Debug)]
pub(super) struct Reader {
    name: String,
    buffers: Mutex<mpsc::Receiver<io::Result<Bytes>>>,
}

/// A stream to be written.
#[derive(Clone, Debug)]
pub(super) struct Writer {
    name: String,
    file: Arc<File>,
}

/// A copy of a standard stream that is neither buffered nor closed at the end.
fn own(stream: impl AsFd) -> Result<File> {
    let own = stream.as_fd().try_clone_to_owned();
    own.map(File::from).step(|| "cannot use a standard stream")
}

impl Reader {
    pub(super) fn stdin(buffer: usize) -> Result<Self> {
        Self::new("standard input".into(), own(io::stdin())?, buffer)
    }

    pub(super) fn open(path: &Path, buffer: usize) -> Result<Self> {
        let name = path.display().to_string();
        let file = File::open(path).step(|| format!("cannot open {name}"))?;
        Self::new(name, file, buffer)
    }

    /// Reads by a thread of its own, since neither a pipe nor a terminal can be waited for together
    /// with sockets in every case.
    fn new(name: String, mut file: File, buffer: usize) -> Result<Self> {
        let (sender, buffers) = mpsc::channel(AHEAD);
        let reading = move || {
            loop {
                match fill(&mut file, buffer) {
                    Ok(data) if data.is_empty() => return,
                    read => {
                        let failed = read.is_err();
                        if sender.blocking_send(read).is_err() || failed {
                            return;
                        }
                    }
                }
            }
        };
        let thread = thread::Builder::new().name("input".into()).spawn(reading);
        thread.step(|| "cannot start a thread")?;
        Ok(Self {
            name,
            buffers: Mutex::new(buffers),
        })
    }

    /// The next bytes; `None` at the end. All but the last have the length of a buffer.
    pub(super) async fn next(&self) -> Result<Option<Bytes>> {
        let next = self.buffers.lock().await.recv().await.transpose();
        next.step(|| format!("cannot read {}", self.name))
    }
}

fn fill(file: &mut File, len: usize) -> io::Result<Bytes> {
    let mut data = Vec::with_capacity(len);
    file.take(len as u64).read_to_end(&mut data)?;
    Ok(data.into())
}

impl Writer {
    pub(super) fn stdout() -> Result<Self> {
        Ok(Self {
            name: "standard output".into(),
            file: Arc::new(own(io::stdout())?),
        })
    }

    pub(super) fn open(path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        let file = File::options().write(true).open(path);
        Ok(Self {
            file: Arc::new(file.step(|| format!("cannot open {name}"))?),
            name,
        })
    }

    /// Writes elsewhere, so that a reader who takes nothing holds up no signal.
    pub(super) async fn write(&self, data: Bytes) -> Result<()> {
        let file = self.file.clone();
        let written = tokio::task::spawn_blocking(move || (&*file).write_all(&data)).await;
        match written {
            Ok(Ok(())) => Ok(()),
            // The rest has no reader.
            Ok(Err(error)) if error.kind() == ErrorKind::BrokenPipe => Err(Error::Output(error)),
            Ok(Err(error)) => Err(error).step(|| format!("cannot write {}", self.name)),
            Err(_) => Err(Error::new(format!("cannot write {}", self.name))),
        }
    }
}
