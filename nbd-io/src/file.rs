//! An export over a file or a block device.

mod ability;
mod allocation;
mod holes;
mod host;
mod inspect;
mod syncs;

use crate::{
    errno::failure,
    export::{Export, ZeroMode, check_range},
};
use ability::Ability;
use holes::Holes;
use inspect::{block_sizes, check_mode, check_type, size};
use nbd_proto::{BlockSizes, Errno, Failure, TransmissionFlags, meta::Extent};
use rustix::fs::{FlockOperation, fcntl_getfl, flock};
use std::{
    fmt, fs,
    io::{self, ErrorKind},
    ops::Range,
    os::unix::fs::{FileExt, FileTypeExt, MetadataExt},
    path::Path,
    sync::{
        LazyLock,
        atomic::{AtomicU64, Ordering},
    },
};
use syncs::Syncs;

/// Written where zeroes cannot be had otherwise, one piece after the other. Allocated on first use,
/// since it would be a large part of a small program.
static ZEROES: LazyLock<Vec<u8>> = LazyLock::new(|| vec![0; 256 << 10]);

/// The length of the blocks that `st_blocks` counts.
const STAT_BLOCK: u64 = 512;

/// An export over a regular file, or over a block device.
///
/// Its size is that of the file when it was opened, and again when a server is about to send it to
/// a client: new connections see the growth of a file. Reads and writes are positioned and go
/// through the page cache of the system, at any offset and of any length. All processes that have
/// the file open share that cache, so that a flush on one connection covers the writes of all.
///
/// # Stable storage
///
/// A flush and FUA are `fdatasync`, or a write with `RWF_DSYNC` where there is one. Once the system
/// said that data could not be brought onto stable storage, a later call may well succeed: the lost
/// data is then no longer in the cache. Every later flush and every later FUA therefore fails;
/// reads and other writes still succeed.
///
/// The system says so once for each time that the file was opened. Where there is a `/proc` to open
/// it again by, a writable file therefore takes up nine file descriptors, so that eight calls for
/// stable storage can be under way at the same time. Elsewhere one waits for the other.
///
/// # Zeroes and holes
///
/// | | regular file on Linux | block device on Linux | elsewhere |
/// | --- | --- | --- | --- |
/// | trim | `FALLOC_FL_PUNCH_HOLE` | the same, if the device can write zeroes by itself; else not offered | nothing |
/// | zeroes | punched, else `FALLOC_FL_ZERO_RANGE`, else written | the same | written |
/// | zeroes without a hole | `FALLOC_FL_ZERO_RANGE`, else allocated and written | the same | written |
/// | fast zeroes | by one call, or not at all | the same, if the device can by itself | never |
/// | holes | `SEEK_DATA` and `SEEK_HOLE` | not reported | only on FreeBSD |
///
/// An operation that the file system turns out not to support is not tried again. Holes are only
/// looked for in files that have some. Some file systems, such as those in memory, search for the
/// end of data page by page: only block status waits for that, and the result is remembered. A read
/// asks for data at a few places, so that a hole in it below 128 KiB may be sent as zeroes.
///
/// # Other users of the file
///
/// Other programs can change it, unless they [lock](Self::locked) it too. Where it became shorter a
/// read fails with [`Errno::Io`], and never finds zeroes; a write makes it longer again.
///
/// ```
/// use nbd_io::{Export, File};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let directory = tempfile::tempdir()?;
/// # let path = directory.path().join("disk.img");
/// std::fs::File::create_new(&path)?.set_len(1 << 30)?;
/// let disk = File::open(&path)?.locked()?.with_description("a disk");
/// disk.write(4096, b"hello", true)?;
/// assert_eq!(disk.size(), 1 << 30);
/// # Ok(())
/// # }
/// ```
pub struct File {
    file: fs::File,
    size: AtomicU64,
    /// The largest size that it had. A client that was sent that may still go by it.
    reach: AtomicU64,
    read_only: bool,
    rotational: bool,
    storage: host::Storage,
    block_sizes: BlockSizes,
    description: String,
    /// Holes are punched and zeroes made in whole blocks of so many bytes.
    unit: u64,
    /// Whether it is fast to have zeroes made.
    fast_zeroes: bool,
    /// Whether trimming does something.
    trims: bool,
    punch_hole: Ability,
    zero_range: Ability,
    allocate: Ability,
    write_durably: Ability,
    read_now: Ability,
    seek: Ability,
    holes: Holes,
    syncs: Syncs,
}

impl File {
    /// Opens a file for reading and writing.
    ///
    /// # Errors
    ///
    /// When it cannot be opened; [`ErrorKind::InvalidInput`] if it is no regular file or block
    /// device; [`ErrorKind::Unsupported`] for a device of unknown size, on systems beside Linux.
    pub fn open(path: impl AsRef<Path>) -> io::Result<Self> {
        Self::open_with(path.as_ref(), fs::OpenOptions::new().read(true).write(true))
    }

    /// Opens a file for reading; the export is read-only.
    ///
    /// # Errors
    ///
    /// As [`open`](Self::open).
    pub fn open_read_only(path: impl AsRef<Path>) -> io::Result<Self> {
        Self::open_with(path.as_ref(), fs::OpenOptions::new().read(true))
    }

    fn open_with(path: &Path, options: &fs::OpenOptions) -> io::Result<Self> {
        // To open a pipe would wait for its other end, to open some devices does something.
        check_type(fs::metadata(path)?.file_type())?;
        Self::from_std(options.open(path)?)
    }

    /// Exports a file that is open already. The export is read-only if the file is.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidInput`] if it is neither a regular file nor a block device, or is open
    /// for writing only, for appending, or without the page cache (`O_DIRECT`). Otherwise as
    /// [`open`](Self::open).
    pub fn from_std(file: fs::File) -> io::Result<Self> {
        let metadata = file.metadata()?;
        check_type(metadata.file_type())?;
        let opened_read_only = check_mode(fcntl_getfl(&file)?)?;
        let size = size(&file)?;
        let device = metadata
            .file_type()
            .is_block_device()
            .then(|| host::Device::of(&file, metadata.rdev()));
        let regular = device.is_none();
        let device = device.unwrap_or(host::Device {
            block: 1,
            read_only: false,
            rotational: false,
            makes_zeroes: true,
        });
        // The system lets a read-only device be opened for writing, and then refuses every write.
        let read_only = opened_read_only || device.read_only;
        let syncs = Syncs::new(file.try_clone()?, read_only);
        Ok(Self {
            storage: host::storage(&file, regular),
            file,
            size: AtomicU64::new(size),
            reach: AtomicU64::new(size),
            read_only,
            rotational: device.rotational,
            block_sizes: block_sizes(metadata.blksize()),
            description: String::new(),
            unit: device.block,
            fast_zeroes: device.makes_zeroes,
            trims: device.makes_zeroes,
            // A device that cannot would drop its cache first, and only then fail.
            punch_hole: Ability::new(device.makes_zeroes),
            zero_range: Ability::new(true),
            allocate: Ability::new(regular),
            write_durably: Ability::new(true),
            read_now: Ability::new(true),
            seek: Ability::new(regular),
            holes: Holes::new(metadata.blocks().saturating_mul(STAT_BLOCK) < size),
            syncs,
        })
    }

    /// Locks the file for as long as it is exported: for this process alone if the export is
    /// writable, for those who only read otherwise.
    ///
    /// The lock is advisory (`flock`): it keeps out those who ask for one of the same kind.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::WouldBlock`] if another program has it locked.
    pub fn locked(self) -> io::Result<Self> {
        flock(
            &self.file,
            if self.read_only {
                FlockOperation::NonBlockingLockShared
            } else {
                FlockOperation::NonBlockingLockExclusive
            },
        )?;
        // The program that had it locked before may have made it shorter or longer.
        let size = size(&self.file)?;
        self.size.store(size, Ordering::Relaxed);
        self.reach.store(size, Ordering::Relaxed);
        Ok(self)
    }

    /// Sends clients these block sizes. The export itself takes any offset and length.
    ///
    /// Unless this is called, only the file system's own preference is sent.
    #[must_use]
    pub fn with_block_sizes(mut self, block_sizes: BlockSizes) -> Self {
        self.block_sizes = block_sizes;
        self
    }

    /// Sends clients a description of this export.
    #[must_use]
    pub fn with_description(mut self, description: impl Into<String>) -> Self {
        self.description = description.into();
        self
    }

    fn check_range(&self, offset: u64, len: u64, errno: Errno) -> Result<(), Failure> {
        check_range(self.reach.load(Ordering::Relaxed), offset, len, errno)
    }

    fn check_writable(&self, offset: u64, len: u64, errno: Errno) -> Result<(), Failure> {
        if self.read_only {
            return Err(Errno::Perm.into());
        }
        self.check_range(offset, len, errno)
    }

    fn write_all(&self, offset: u64, data: &[u8]) -> Result<(), Failure> {
        let written = self.file.write_all_at(data, offset);
        written.map_err(|error| at(offset, &error))
    }

    fn write_durably(&self, offset: u64, data: &[u8]) -> Result<(), Failure> {
        self.syncs.run(|file| {
            let done = self
                .write_durably
                .attempt(|| host::write_durably(file, data, offset));
            if let Ok(Some(())) = done {
                return Ok(Ok(()));
            }
            // Where both were to be done by one call and that failed, this finds out which of them.
            if let Err(failure) = self.write_all(offset, data) {
                return Ok(Err(failure));
            }
            match done {
                Ok(_) => file.sync_data().map(Ok),
                Err(error) => Err(error),
            }
        })?
    }

    fn sync(&self) -> Result<(), Failure> {
        self.syncs.run(fs::File::sync_data)
    }

    /// The whole blocks in a range.
    fn whole(&self, range: &Range<u64>) -> Range<u64> {
        let start = range.start.next_multiple_of(self.unit);
        let end = range.end - range.end % self.unit;
        start..end.max(start)
    }

    /// Makes holes of whole blocks, which read as zeroes; false if that cannot be done.
    fn punch_hole(&self, range: &Range<u64>) -> Result<bool, Failure> {
        self.make_zeroes(&self.punch_hole, host::punch_hole, range)
    }

    /// Makes zeroes of whole blocks, which stay allocated; false if that cannot be done.
    fn zero_range(&self, range: &Range<u64>) -> Result<bool, Failure> {
        self.make_zeroes(&self.zero_range, host::zero_range, range)
    }

    fn make_zeroes(
        &self,
        ability: &Ability,
        call: fn(&fs::File, Range<u64>) -> io::Result<()>,
        range: &Range<u64>,
    ) -> Result<bool, Failure> {
        let done = ability.attempt(|| call(&self.file, range.clone()));
        let done = done.map_err(|error| at(range.start, &error))?.is_some();
        if done {
            self.holes.made(range);
        }
        Ok(done)
    }

    /// Has whole blocks zeroed without writing them; false if that cannot be done.
    fn zero_whole(&self, range: &Range<u64>, mode: ZeroMode) -> Result<bool, Failure> {
        if range.is_empty() || mode.fast && !self.fast_zeroes {
            return Ok(false);
        }
        Ok(!mode.no_hole && self.punch_hole(range)? || self.zero_range(range)?)
    }

    fn write_zero_bytes(&self, range: Range<u64>) -> Result<(), Failure> {
        let mut offset = range.start;
        while offset < range.end {
            let rest = usize::try_from(range.end - offset).unwrap_or(usize::MAX);
            let piece = &ZEROES[..rest.min(ZEROES.len())];
            self.write_all(offset, piece)?;
            offset += piece.len() as u64;
        }
        Ok(())
    }
}

impl Export for File {
    fn size(&self) -> u64 {
        self.size.load(Ordering::Relaxed)
    }

    fn refresh(&self) {
        // Where the system does not say, the last known answer is the best guess.
        let (Ok(size), Ok(metadata)) = (size(&self.file), self.file.metadata()) else {
            return;
        };
        if self.size.swap(size, Ordering::Relaxed) != size {
            self.reach.fetch_max(size, Ordering::Relaxed);
            if metadata.blocks().saturating_mul(STAT_BLOCK) < size {
                self.holes.are_there();
            }
        }
    }

    fn read(&self, mut offset: u64, mut buf: &mut [u8]) -> Result<(), Failure> {
        self.check_range(offset, buf.len() as u64, Errno::Inval)?;
        while !buf.is_empty() {
            match self.file.read_at(buf, offset) {
                Ok(0) => {
                    return Err(Failure {
                        message: format!("the file ends at or before {offset} and was longer")
                            .into(),
                        offset: Some(offset),
                        ..Errno::Io.into()
                    });
                }
                Ok(len) => {
                    buf = &mut buf[len..];
                    offset += len as u64;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(at(offset, &error)),
            }
        }
        Ok(())
    }

    fn may_block(&self) -> bool {
        self.storage != host::Storage::Memory
    }

    fn refresh_may_block(&self) -> bool {
        self.storage == host::Storage::Other
    }

    fn read_now(&self, offset: u64, buf: &mut [u8]) -> Option<Result<(), Failure>> {
        if let Err(failure) = self.check_range(offset, buf.len() as u64, Errno::Inval) {
            return Some(Err(failure));
        }
        if self.storage == host::Storage::Memory {
            // There is no such call for memory, and no need.
            return Some(self.read(offset, buf));
        }
        let read = self
            .read_now
            .attempt(|| host::read_now(&self.file, buf, offset));
        // If less is in the cache, or in the file, a read will find out.
        matches!(read, Ok(Some(len)) if len == buf.len()).then_some(Ok(()))
    }

    fn flags(&self) -> TransmissionFlags {
        let mut flags = TransmissionFlags::SEND_FLUSH
            | TransmissionFlags::SEND_FUA
            | TransmissionFlags::SEND_WRITE_ZEROES
            | TransmissionFlags::SEND_FAST_ZERO
            | TransmissionFlags::SEND_CACHE
            | TransmissionFlags::CAN_MULTI_CONN;
        if self.trims {
            flags = flags | TransmissionFlags::SEND_TRIM;
        }
        if self.read_only {
            flags = flags | TransmissionFlags::READ_ONLY;
        }
        if self.rotational {
            flags = flags | TransmissionFlags::ROTATIONAL;
        }
        flags
    }

    fn block_sizes(&self) -> BlockSizes {
        self.block_sizes
    }

    fn description(&self) -> &str {
        &self.description
    }

    fn write(&self, offset: u64, data: &[u8], fua: bool) -> Result<(), Failure> {
        self.check_writable(offset, data.len() as u64, Errno::NoSpc)?;
        if fua {
            self.write_durably(offset, data)
        } else {
            self.write_all(offset, data)
        }
    }

    fn write_zeroes(&self, offset: u64, len: u64, mode: ZeroMode) -> Result<(), Failure> {
        self.check_writable(offset, len, Errno::NoSpc)?;
        if len == 0 {
            return Ok(());
        }
        let range = offset..offset + len;
        let whole = self.whole(&range);
        if self.zero_whole(&whole, mode)? {
            self.write_zero_bytes(range.start..whole.start)?;
            self.write_zero_bytes(whole.end..range.end)?;
        } else if mode.fast {
            return Err(Failure {
                message: "zeroes would have to be written here".into(),
                ..Errno::NotSup.into()
            });
        } else {
            if mode.no_hole {
                // A range for which there is no room is not even begun.
                let done = self
                    .allocate
                    .attempt(|| host::allocate(&self.file, range.clone()));
                done.map_err(|error| at(offset, &error))?;
            }
            self.write_zero_bytes(range)?;
        }
        if mode.fua { self.sync() } else { Ok(()) }
    }

    fn trim(&self, offset: u64, len: u64, fua: bool) -> Result<(), Failure> {
        self.check_writable(offset, len, Errno::Inval)?;
        let whole = self.whole(&(offset..offset + len));
        if !whole.is_empty() {
            self.punch_hole(&whole)?;
        }
        if fua { self.sync() } else { Ok(()) }
    }

    fn cache(&self, offset: u64, len: u64) -> Result<(), Failure> {
        self.check_range(offset, len, Errno::Inval)?;
        host::will_need(&self.file, offset, len);
        Ok(())
    }

    fn flush(&self) -> Result<(), Failure> {
        self.sync()
    }

    fn finds_zeroes(&self) -> bool {
        self.seek.is_likely() && self.holes.are_likely()
    }

    fn allocation(&self, offset: u64, len: u64) -> Result<Extent, Failure> {
        self.ask(offset, len, Self::search)
    }

    fn quick_allocation(&self, offset: u64, len: u64) -> Result<Extent, Failure> {
        self.ask(offset, len, Self::look)
    }
}

impl fmt::Debug for File {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("File")
            .field("file", &self.file)
            .field("size", &self.size())
            .field("read_only", &self.read_only)
            .finish_non_exhaustive()
    }
}

fn at(offset: u64, error: &io::Error) -> Failure {
    Failure {
        offset: Some(offset),
        ..failure(error)
    }
}

#[cfg(test)]
mod tests;
