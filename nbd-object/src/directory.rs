//! A directory as a store that keeps conditions.

use crate::format::checksum;
use async_trait::async_trait;
use futures_util::stream::{self, BoxStream, StreamExt};
use object_store::{
    Attributes, CopyOptions, Error, Extensions, GetOptions, GetResult, GetResultPayload,
    ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMode, PutMultipartOptions, PutOptions,
    PutPayload, PutResult, RenameOptions, Result, UpdateVersion, local::LocalFileSystem,
    path::Path,
};
use std::{fmt, io, time::Duration};

/// Objects up to this size can be swapped. Their entity tag is a hash of their bytes.
const SWAPPABLE: u64 = 4096;

/// A directory of a local file system as a store, whose writes are on the disk when they return.
///
/// It is [`LocalFileSystem`] with two additions. A put is followed by `fsync` of the file and of its
/// directory. Small objects can be swapped on a condition, which that store cannot: a swap holds a
/// lock, compares the bytes that are there, and renames a new file over them. The lock is one of the
/// kernel's (`flock`) on a file beside the object, and so ends with a process that dies. The file goes with
/// the object.
///
/// A process that dies leaves the files of its unfinished puts. Listings, which a collection of garbage
/// makes, remove those that are older than a day.
#[derive(Clone, Debug)]
pub struct Directory {
    files: LocalFileSystem,
}

impl Directory {
    /// Opens a directory, which is created if it is not there.
    ///
    /// # Errors
    ///
    /// When it cannot be created or opened.
    pub fn open(path: impl AsRef<std::path::Path>) -> io::Result<Self> {
        std::fs::create_dir_all(&path)?;
        let files = LocalFileSystem::new_with_prefix(path)?.with_fsync(true);
        Ok(Self { files })
    }
}

impl fmt::Display for Directory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.files.fmt(f)
    }
}

fn tag(bytes: &[u8]) -> String {
    format!("\"{:016x}-{}\"", checksum(bytes), bytes.len())
}

fn generic(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::Generic {
        store: "Directory",
        source: error.into(),
    }
}

/// The ends of the names of an object's lock and of the file that is renamed over the object. Such names are
/// no objects: listings leave them out.
#[cfg(unix)]
const LOCK: &str = "#0";
#[cfg(unix)]
const STAGED: &str = "#00";

#[cfg(unix)]
fn beside(path: &std::path::Path, suffix: &str) -> std::path::PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// The kernel's lock on the file beside an object.
#[cfg(unix)]
struct Lock(
    std::path::PathBuf,
    #[expect(dead_code, reason = "closing it unlocks")] std::fs::File,
);

#[cfg(unix)]
impl Lock {
    fn take(object: &std::path::Path, create: bool) -> io::Result<Self> {
        use rustix::fs::{FlockOperation, flock};
        use std::{fs, os::unix::fs::MetadataExt};

        let path = beside(object, LOCK);
        let id = |metadata: &fs::Metadata| (metadata.dev(), metadata.ino());
        loop {
            let mut options = fs::OpenOptions::new();
            let file = options
                .create(create)
                .truncate(false)
                .write(true)
                .open(&path)?;
            flock(&file, FlockOperation::LockExclusive)?;
            // Its last holder may have removed it, and others may lock a new one already.
            match fs::metadata(&path) {
                Ok(current) if id(&current) == id(&file.metadata()?) => {
                    return Ok(Self(path, file));
                }
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Removes the lock of an object that was deleted, if it had one.
    fn clean(object: &std::path::Path) -> io::Result<()> {
        match Self::take(object, false) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            lock => {
                // A swap that a crash has cut off leaves its file.
                let _ = std::fs::remove_file(beside(object, STAGED));
                lock?.remove()
            }
        }
    }

    /// Unlocks it, too: the others who wait for it take a new one.
    fn remove(self) -> io::Result<()> {
        std::fs::remove_file(&self.0)
    }
}

/// Replaces a file if it has the bytes of `expected`, and returns the new tag.
#[cfg(unix)]
fn swap(
    path: &std::path::Path,
    location: &Path,
    new: &[u8],
    expected: &UpdateVersion,
) -> Result<String> {
    use std::{fs, io::Write};

    let parent = path
        .parent()
        .ok_or_else(|| generic("a file without a directory"))?;
    let lock = Lock::take(path, true).map_err(generic)?;
    let found = match fs::read(path) {
        Ok(bytes) => Some(tag(&bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(generic(error)),
    };
    if found.is_none() {
        // The lock of no object may be new.
        lock.remove().map_err(generic)?;
    }
    if found.is_none() || found != expected.e_tag {
        return Err(Error::Precondition {
            path: location.to_string(),
            source: format!("{found:?} does not match {:?}", expected.e_tag).into(),
        });
    }
    // Only the holder of the lock writes this file.
    let staged = beside(path, STAGED);
    let mut file = fs::File::create(&staged).map_err(generic)?;
    file.write_all(new)
        .and_then(|()| file.sync_all())
        .map_err(generic)?;
    fs::rename(&staged, path).map_err(generic)?;
    fs::File::open(parent)
        .and_then(|parent| parent.sync_all())
        .map_err(generic)?;
    Ok(tag(new))
}

#[cfg(not(unix))]
fn swap(_: &std::path::Path, _: &Path, _: &[u8], _: &UpdateVersion) -> Result<String> {
    Err(Error::NotImplemented {
        operation: "conditional swap in a directory".into(),
        implementer: "this system".into(),
    })
}

/// Age of the file of a put from which on no program is at work on it any more.
const UNFINISHED: Duration = Duration::from_secs(24 * 3600);

/// Removes the files of puts that a crash has cut off. They have the object's name and a number.
fn remove_unfinished(directory: &std::path::Path) -> io::Result<()> {
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_unfinished(&entry.path())?;
            continue;
        }
        let name = entry.file_name();
        let number = name
            .to_str()
            .and_then(|name| name.rsplit_once('#'))
            .map(|(_, number)| number);
        let unfinished = number.is_some_and(|number| {
            // 0 is a lock.
            number != "0" && !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())
        });
        if unfinished
            && entry
                .metadata()?
                .modified()?
                .elapsed()
                .is_ok_and(|age| age > UNFINISHED)
        {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Does work that waits for a disk on a thread that may wait, where there is Tokio, as `LocalFileSystem` does.
async fn blocking<T: Send + 'static>(
    job: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    match tokio::runtime::Handle::try_current() {
        Ok(runtime) => runtime.spawn_blocking(job).await.map_err(generic)?,
        Err(_) => job(),
    }
}

#[async_trait]
impl ObjectStore for Directory {
    async fn put_opts(
        &self,
        location: &Path,
        payload: PutPayload,
        options: PutOptions,
    ) -> Result<PutResult> {
        let small = (payload.content_length() as u64 <= SWAPPABLE)
            .then(|| payload.iter().flatten().copied().collect::<Vec<u8>>());
        if let PutMode::Update(expected) = options.mode {
            let Some(new) = small else {
                return Err(generic("an object as large as this cannot be swapped"));
            };
            let path = self.files.path_to_filesystem(location)?;
            let location = location.clone();
            let tag = blocking(move || swap(&path, &location, &new, &expected)).await?;
            return Ok(PutResult {
                e_tag: Some(tag),
                version: None,
                extensions: Extensions::default(),
            });
        }
        let mut done = self.files.put_opts(location, payload, options).await?;
        if let Some(bytes) = small {
            done.e_tag = Some(tag(&bytes));
        }
        Ok(done)
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.files.put_multipart_opts(location, options).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let whole = options.range.is_none() && !options.head;
        let found = self.files.get_opts(location, options).await?;
        if !whole || found.meta.size > SWAPPABLE {
            return Ok(found);
        }
        let (mut meta, range) = (found.meta.clone(), found.range.clone());
        let bytes = found.bytes().await?;
        meta.e_tag = Some(tag(&bytes));
        Ok(GetResult {
            payload: GetResultPayload::Stream(stream::iter([Ok(bytes)]).boxed()),
            meta,
            range,
            attributes: Attributes::default(),
            extensions: Extensions::default(),
        })
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        let deleted = self.files.delete_stream(locations);
        #[cfg(unix)]
        let deleted = {
            use futures_util::TryStreamExt;
            let files = self.files.clone();
            deleted.and_then(move |location| {
                let path = files.path_to_filesystem(&location);
                async move {
                    // A lock that stays does no harm.
                    let _ = blocking(move || Lock::clean(&path?).map_err(generic)).await;
                    Ok(location)
                }
            })
        };
        deleted.boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let list = self.files.list(prefix);
        let below = prefix.cloned().unwrap_or_default().join("x");
        let Ok(path) = self.files.path_to_filesystem(&below) else {
            return list;
        };
        let clean = async move {
            let job = move || {
                path.parent()
                    .map_or(Ok(()), remove_unfinished)
                    .map_err(generic)
            };
            // The objects are listed all the same.
            let _ = blocking(job).await;
            list
        };
        stream::once(clean).flatten().boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.files.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.files.copy_opts(from, to, options).await
    }

    async fn rename_opts(&self, from: &Path, to: &Path, options: RenameOptions) -> Result<()> {
        self.files.rename_opts(from, to, options).await
    }
}
