//! Both ends of a copy.

use super::{
    Task,
    stream::{Reader, Writer},
};
use crate::{
    disk::{Access, Disk, is_same_file},
    outcome::{Context, Error, Result},
    size::exact,
    target::Target,
};
use nbd_tokio::{exports::File, nbd_io::client::Reconnect};
use std::{
    fs, io,
    os::unix::fs::FileTypeExt,
    path::{Path, PathBuf},
    sync::Arc,
};

/// Limit in bytes of unflushed writes that are kept, to be replayed to a server that comes back.
const UNFLUSHED_LIMIT: u64 = 8 << 20;

/// The size of a disk on object storage is a multiple of it, in bytes.
const SECTOR: u64 = 512;

/// Settings to open both ends, once for each thread.
#[derive(Clone, Debug)]
pub(super) struct Ends {
    source: Target,
    destination: Target,
    from: Access,
    to: Access,
    buffer: usize,
    /// Data that the destination has already must not be lost.
    keeps: bool,
}

/// The source of the data.
#[derive(Clone, Debug)]
pub(super) enum Source {
    Disk(Disk),
    Stream(Arc<Reader>),
}

/// The destination of the data.
#[derive(Clone, Debug)]
pub(super) enum Sink {
    Disk(Disk),
    /// A file that becomes as long as the data written to it.
    Growing(Disk, Arc<fs::File>),
    Stream(Writer),
}

impl Source {
    pub(super) fn size(&self) -> Option<u64> {
        match self {
            Self::Disk(disk) => Some(disk.size()),
            Self::Stream(_) => None,
        }
    }

    pub(super) fn is_shareable(&self) -> bool {
        matches!(self, Self::Disk(disk) if disk.is_shareable())
    }

    async fn again(&self, ends: &Ends) -> Result<Self> {
        match self {
            Self::Disk(disk) => Ok(Self::Disk(disk.again(&ends.from).await?)),
            Self::Stream(_) => Ok(self.clone()),
        }
    }
}

impl Sink {
    /// The disk, unless it is a stream.
    pub(super) const fn disk(&self) -> Option<&Disk> {
        match self {
            Self::Disk(disk) | Self::Growing(disk, _) => Some(disk),
            Self::Stream(_) => None,
        }
    }

    pub(super) fn is_shareable(&self) -> bool {
        matches!(self, Self::Disk(disk) if disk.is_shareable())
    }

    async fn again(&self, ends: &Ends) -> Result<Self> {
        match self {
            Self::Disk(disk) => Ok(Self::Disk(disk.again(&ends.to).await?)),
            Self::Growing(..) | Self::Stream(_) => Ok(self.clone()),
        }
    }
}

impl Ends {
    /// With so many threads, and whether the destination is to be kept as it is.
    pub(super) fn new(task: &Task, threads: usize, resumes: bool) -> Self {
        let options = &task.options;
        let access = options.transfer.access(threads);
        let kept = |policy: Reconnect| policy.keep_unflushed(UNFLUSHED_LIMIT);
        Self {
            source: task.source.clone(),
            destination: task.destination.clone(),
            to: Access {
                reconnect: access.reconnect.clone().map(kept),
                ..access.clone()
            },
            from: Access {
                only: options.only.clone(),
                ..access
            },
            buffer: usize::try_from(options.transfer.request_size()).unwrap_or(1 << 20),
            keeps: options.only.is_some() || options.changed_only || resumes,
        }
    }

    /// Opens both, and says whether all of the destination is zero.
    pub(super) async fn open(&self) -> Result<(Source, Sink, bool)> {
        let source = self.open_source().await?;
        let (sink, is_new) = self.open_sink(source.size()).await?;
        Ok((source, sink, is_new))
    }

    /// Opens both once more, for another thread.
    pub(super) async fn open_again(&self, source: &Source, sink: &Sink) -> Result<(Source, Sink)> {
        Ok((source.again(self).await?, sink.again(self).await?))
    }

    async fn open_source(&self) -> Result<Source> {
        if self.from.only.is_some() && matches!(self.source, Target::Stdio | Target::Path(_)) {
            return Err(Error::new(format!(
                "{} has no meta contexts: --only is for servers",
                self.source
            )));
        }
        let reader = match &self.source {
            Target::Stdio => Reader::stdin(self.buffer)?,
            Target::Path(path) if is_pipe(path) => Reader::open(path, self.buffer)?,
            disk => return Ok(Source::Disk(Disk::open(disk, &self.from).await?)),
        };
        Ok(Source::Stream(Arc::new(reader)))
    }

    async fn open_sink(&self, size: Option<u64>) -> Result<(Sink, bool)> {
        let writer = match &self.destination {
            Target::Server(_) => {
                let disk = Disk::connect(&self.destination, &self.to).await?;
                let disk = self.fitting(disk, size)?;
                let is_zero = !self.keeps && disk.is_known_to_be_zero().await?;
                return Ok((Sink::Disk(disk), is_zero));
            }
            Target::Object(address) => {
                // As a file is made that is not there.
                let size = size.map(|size| size.next_multiple_of(SECTOR));
                let disk = Disk::object(address, true, size, &self.to).await?;
                let disk = self.fitting(disk, size)?;
                let is_zero = !self.keeps && disk.is_known_to_be_zero().await?;
                return Ok((Sink::Disk(disk), is_zero));
            }
            Target::Path(path) if is_pipe(path) => Writer::open(path)?,
            Target::Path(path) => return self.open_file(path, size),
            Target::Stdio => Writer::stdout()?,
        };
        if self.keeps {
            return Err(Error::new(format!(
                "{} is a stream: it can only be written as a whole",
                self.destination
            )));
        }
        Ok((Sink::Stream(writer), false))
    }

    fn open_file(&self, path: &Path, size: Option<u64>) -> Result<(Sink, bool)> {
        if let Target::Path(source) = &self.source
            && is_same_file(source, path)
        {
            return Err(Error::new(format!(
                "{} and {} are the same file",
                source.display(),
                path.display()
            )));
        }
        let name = path.display().to_string();
        let is_device = fs::metadata(path).is_ok_and(|there| !there.is_file());
        if self.keeps || is_device {
            let file = File::open(path).step(|| format!("cannot open {name}"))?;
            let disk = self.fitting(Disk::file(name, file), size)?;
            return Ok((Sink::Disk(disk), false));
        }
        let step = || format!("cannot create {name}");
        let file = create(path).step(step)?;
        let Some(size) = size else {
            let handle = Arc::new(file.try_clone().step(step)?);
            let disk = Disk::file(name.clone(), File::from_std(file).step(step)?);
            return Ok((Sink::Growing(disk, handle), true));
        };
        let sized = file.set_len(size);
        sized.step(|| format!("cannot make {name} {size} bytes long"))?;
        let file = File::from_std(file).step(step)?;
        Ok((Sink::Disk(Disk::file(name, file)), true))
    }

    /// A destination that can be written and is large enough.
    fn fitting(&self, disk: Disk, size: Option<u64>) -> Result<Disk> {
        let name = disk.name();
        if disk.export().is_some_and(|export| export.is_read_only()) {
            return Err(Error::new(format!("{name} is read-only")));
        }
        match size {
            Some(size) if disk.size() < size => Err(Error::new(format!(
                "{name} is too small: it has {} bytes, and {} has {}",
                sized(disk.size()),
                self.source,
                sized(size)
            ))),
            _ => Ok(disk),
        }
    }
}

fn sized(bytes: u64) -> String {
    match exact(bytes) {
        short if short == bytes.to_string() => short,
        short => format!("{bytes} ({short})"),
    }
}

/// A file with nothing in it, which is still there after a crash.
fn create(path: &Path) -> io::Result<fs::File> {
    let file = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(path)?;
    let directory = match path.parent() {
        Some(parent) if parent != Path::new("") => parent.to_owned(),
        _ => PathBuf::from("."),
    };
    // Not every file system can do that, nor may every user, and the file is there.
    let _ = fs::File::open(directory).and_then(|directory| directory.sync_all());
    Ok(file)
}

/// Whether there is something that can neither be positioned nor has a size.
fn is_pipe(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|there| {
        let kind = there.file_type();
        kind.is_fifo() || kind.is_char_device() || kind.is_socket()
    })
}

impl Target {
    /// Whether it has no size and is used from its beginning to its end.
    pub(super) fn is_stream(&self) -> bool {
        match self {
            Self::Stdio => true,
            Self::Path(path) => is_pipe(path),
            Self::Server(_) | Self::Object(_) => false,
        }
    }
}
