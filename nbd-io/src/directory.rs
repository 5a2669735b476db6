//! The files of a directory as exports.

use crate::{Export, Exports, File, Listing, Offer, Unavailable};
use nbd_proto::{ExportName, server::Refusal};
use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, openat, statat};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{self, ErrorKind},
    os::{fd::OwnedFd, unix::fs::MetadataExt},
    path::Path,
    sync::{Arc, Mutex, PoisonError, Weak},
};

/// The regular files and block devices of a directory, each an export of its name.
///
/// # What is served
///
/// An export's name is a file's, and nothing else: no name leads out of the directory or below it.
/// Symbolic links are not followed, so that a link cannot lead out either; a link is not served.
/// Files whose name begins with a dot are hidden, and files whose name is not UTF-8 have none that
/// a client could send. There is no default export.
///
/// The directory is opened once. It stays the same one if it is renamed, and a file is served from
/// when it comes into the directory until it goes.
///
/// Clients that use the same file share one [`File`], so that a flush on one connection covers the
/// writes of all, and so does a failed one. It is closed with the last of them.
///
/// # Refusals
///
/// A file that is not there is [unknown](Refusal::Unknown). One that is there and cannot be opened,
/// such as one without permission to write, is refused by [policy](Refusal::Policy), with the system's
/// reason. A file is never served read-only because it cannot be written to:
/// [`read_only`](Self::read_only) says so for all of them.
///
/// ```
/// use nbd_io::{Directory, Exports, server::ServerOptions};
/// use nbd_proto::ExportName;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let images = tempfile::tempdir()?;
/// std::fs::File::create_new(images.path().join("disk.img"))?.set_len(1 << 30)?;
/// let exports = Directory::open(images.path())?.with_description("an image");
/// assert_eq!(exports.list()[0].name.as_str(), "disk.img");
/// let offer = exports.find(&ExportName::new("disk.img")?).expect("it is there");
/// assert_eq!(offer.export.size(), 1 << 30);
/// assert!(exports.find(&ExportName::new("../disk.img")?).is_err());
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Directory {
    directory: OwnedFd,
    read_only: bool,
    description: String,
    max_listed: usize,
    /// Files in use, by device and inode number.
    used: Mutex<BTreeMap<(u64, u64), Weak<File>>>,
}

impl Directory {
    /// Serves the files of this directory, for reading and writing.
    ///
    /// # Errors
    ///
    /// When it cannot be opened, or is no directory.
    pub fn open(path: impl AsRef<Path>) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self {
            directory: openat(CWD, path.as_ref(), flags, Mode::empty())?,
            read_only: false,
            description: String::new(),
            max_listed: 10_000,
            used: Mutex::default(),
        })
    }

    /// Opens files for reading only, which makes all exports read-only.
    #[must_use]
    pub fn read_only(mut self) -> Self {
        self.read_only = true;
        self
    }

    /// Sends clients a description with each export.
    #[must_use]
    pub fn with_description(mut self, description: impl Into<String>) -> Self {
        self.description = description.into();
        self
    }

    /// Lists this many exports at most, the first by their names: 10,000 by default. The others can be
    /// used all the same.
    #[must_use]
    pub fn with_max_listed(mut self, exports: usize) -> Self {
        self.max_listed = exports;
        self
    }

    fn file(&self, name: &ExportName) -> Result<Arc<File>, Unavailable> {
        let unknown = Unavailable::unknown;
        let name = file_name(name.as_str()).ok_or_else(unknown)?;
        let found = statat(&self.directory, name, AtFlags::SYMLINK_NOFOLLOW);
        let found = found.map_err(|error| unavailable(&error.into()))?;
        // To open anything else may wait, or do something.
        if !is_served(FileType::from_raw_mode(found.st_mode)) {
            return Err(unknown());
        }
        self.open_file(name).map_err(|error| unavailable(&error))
    }

    fn open_file(&self, name: &str) -> io::Result<Arc<File>> {
        let access = if self.read_only {
            OFlags::RDONLY
        } else {
            OFlags::RDWR
        };
        // It may have become a link or a pipe in the meantime.
        let flags = access | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
        let file = fs::File::from(openat(&self.directory, name, flags, Mode::empty())?);
        let metadata = file.metadata()?;
        let identity = (metadata.dev(), metadata.ino());
        if let Some(used) = self.used(identity) {
            return Ok(used);
        }
        let file = Arc::new(File::from_std(file)?.with_description(&self.description));
        let mut files = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        files.retain(|_, file| file.strong_count() > 0);
        // Another client may have been quicker.
        if let Some(used) = files.get(&identity).and_then(Weak::upgrade) {
            return Ok(used);
        }
        files.insert(identity, Arc::downgrade(&file));
        Ok(file)
    }

    fn used(&self, identity: (u64, u64)) -> Option<Arc<File>> {
        let files = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        files.get(&identity)?.upgrade()
    }

    fn names(&self) -> io::Result<BTreeSet<ExportName>> {
        let mut names = BTreeSet::new();
        for entry in Dir::read_from(&self.directory)? {
            let entry = entry?;
            let name = entry.file_name().to_str().ok().and_then(file_name);
            let Some(name) = name.and_then(|name| ExportName::new(name).ok()) else {
                continue;
            };
            let kind = match entry.file_type() {
                // Not all file systems report it.
                FileType::Unknown => {
                    let flags = AtFlags::SYMLINK_NOFOLLOW;
                    let found = statat(&self.directory, entry.file_name(), flags);
                    found.map_or(FileType::Unknown, |found| {
                        FileType::from_raw_mode(found.st_mode)
                    })
                }
                kind => kind,
            };
            if is_served(kind) {
                names.insert(name);
                if names.len() > self.max_listed {
                    names.pop_last();
                }
            }
        }
        Ok(names)
    }
}

impl Exports for Directory {
    fn lookup(&self, name: &ExportName) -> Option<Offer> {
        self.find(name).ok()
    }

    fn find(&self, name: &ExportName) -> Result<Offer, Unavailable> {
        let file: Arc<dyn Export> = self.file(name)?;
        Ok(Offer::new(file))
    }

    /// None if the directory cannot be read.
    fn list(&self) -> Vec<Listing> {
        let names = self.names().unwrap_or_default().into_iter();
        names
            .map(|name| Listing {
                description: self.description.as_str().into(),
                ..Listing::new(name)
            })
            .collect()
    }

    fn may_block(&self) -> bool {
        true
    }
}

/// A name that stands for a file in the directory itself, if it is served.
fn file_name(name: &str) -> Option<&str> {
    let is_one = !name.is_empty() && !name.starts_with('.') && !name.contains('/');
    is_one.then_some(name)
}

fn is_served(kind: FileType) -> bool {
    kind.is_file() || kind.is_block_device()
}

/// The answer to a client for a file that cannot be opened.
fn unavailable(error: &io::Error) -> Unavailable {
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "whatever else it is, the file is there and is not served"
    )]
    match error.kind() {
        ErrorKind::NotFound | ErrorKind::InvalidFilename | ErrorKind::NotADirectory => {
            Unavailable::unknown()
        }
        _ => Unavailable::new(
            Refusal::Policy,
            format!("the export cannot be opened: {error}"),
        ),
    }
}

#[cfg(test)]
mod tests;
