//! The calls that only some systems have. Elsewhere they fail with [`ErrorKind::Unsupported`].
//!
//! [`ErrorKind::Unsupported`]: std::io::ErrorKind::Unsupported

use std::{fs::File, io, ops::Range};

/// The known properties of a block device.
pub(super) struct Device {
    /// Bytes in a block, a power of two.
    pub(super) block: u64,
    pub(super) read_only: bool,
    pub(super) rotational: bool,
    /// It makes zeroes without being sent them.
    pub(super) makes_zeroes: bool,
}

/// The storage behind a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Storage {
    /// Nothing but memory.
    Memory,
    /// A file system of this machine's disks, which has the metadata of open files in memory.
    #[cfg_attr(
        not(target_os = "linux"),
        expect(dead_code, reason = "elsewhere it is not found out")
    )]
    Local,
    /// Anything, such as a network.
    Other,
}

pub(super) use system::*;

#[cfg(target_os = "linux")]
mod system {
    use super::{Device, File, Range, Storage, io};
    use rustix::{
        fs::{FallocateFlags, OFlags, fallocate, ioctl_blksszget, major, minor},
        io::{IoSlice, IoSliceMut, ReadWriteFlags, preadv2, pwritev2, retry_on_intr},
    };
    use std::{fs, os::fd::AsRawFd};

    /// The flag by which a file is opened past the page cache.
    pub(in super::super) const DIRECT: OFlags = OFlags::DIRECT;

    impl Device {
        pub(in super::super) fn of(file: &File, number: u64) -> Self {
            let device = format!("/sys/dev/block/{}:{}", major(number), minor(number));
            let is_set = |attribute: &str| {
                fs::read_to_string(format!("{device}/{attribute}")).map(|value| value.trim() != "0")
            };
            let queue = |attribute: &str| {
                // That of a partition is its disk's.
                is_set(&format!("queue/{attribute}"))
                    .or_else(|_| is_set(&format!("../queue/{attribute}")))
                    .unwrap_or(false)
            };
            Self {
                block: ioctl_blksszget(file)
                    .ok()
                    .filter(|block| block.is_power_of_two())
                    .map_or(4096, u64::from),
                read_only: is_set("ro").unwrap_or(false),
                rotational: queue("rotational"),
                makes_zeroes: queue("write_zeroes_max_bytes"),
            }
        }
    }

    impl Storage {
        /// The storage behind a regular file or a device, by the magic number of its file system.
        pub(in super::super) const fn of(magic: u32, regular: bool) -> Self {
            const TMPFS: u32 = 0x0102_1994;
            const RAMFS: u32 = 0x8584_58f6;
            const EXT4: u32 = 0xef53;
            const XFS: u32 = 0x5846_5342;
            const BTRFS: u32 = 0x9123_683e;
            const F2FS: u32 = 0xf2f5_2010;
            const ZFS: u32 = 0x2fc1_2fc1;
            match magic {
                TMPFS | RAMFS if regular => Self::Memory,
                // The device's name is in memory, and the device is not.
                TMPFS | RAMFS | EXT4 | XFS | BTRFS | F2FS | ZFS => Self::Local,
                _ => Self::Other,
            }
        }
    }

    /// The storage behind a regular file or a device.
    pub(in super::super) fn storage(file: &File, regular: bool) -> Storage {
        let system = rustix::fs::fstatfs(file).ok();
        let magic = system.and_then(|system| u32::try_from(system.f_type).ok());
        magic.map_or(Storage::Other, |magic| Storage::of(magic, regular))
    }

    /// Opens a file for reading and writing again, wherever it is now.
    pub(in super::super) fn reopen(file: &File) -> io::Result<File> {
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        File::options().read(true).write(true).open(path)
    }

    /// Writes all of `data` onto stable storage.
    pub(in super::super) fn write_durably(
        file: &File,
        mut data: &[u8],
        mut offset: u64,
    ) -> io::Result<()> {
        while !data.is_empty() {
            let written = retry_on_intr(|| {
                pwritev2(file, &[IoSlice::new(data)], offset, ReadWriteFlags::DSYNC)
            })?;
            if written == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            data = &data[written..];
            offset += written as u64;
        }
        Ok(())
    }

    /// Reads bytes that are in the page cache, and returns their number.
    pub(in super::super) fn read_now(
        file: &File,
        buf: &mut [u8],
        offset: u64,
    ) -> io::Result<usize> {
        let bufs = &mut [IoSliceMut::new(buf)];
        Ok(preadv2(file, bufs, offset, ReadWriteFlags::NOWAIT)?)
    }

    pub(in super::super) fn punch_hole(file: &File, range: Range<u64>) -> io::Result<()> {
        call_fallocate(file, FallocateFlags::PUNCH_HOLE, range)
    }

    pub(in super::super) fn zero_range(file: &File, range: Range<u64>) -> io::Result<()> {
        call_fallocate(file, FallocateFlags::ZERO_RANGE, range)
    }

    pub(in super::super) fn allocate(file: &File, range: Range<u64>) -> io::Result<()> {
        call_fallocate(file, FallocateFlags::empty(), range)
    }

    fn call_fallocate(file: &File, mode: FallocateFlags, range: Range<u64>) -> io::Result<()> {
        // A file that another program made shorter is not made longer again.
        let mode = mode | FallocateFlags::KEEP_SIZE;
        let len = range.end - range.start;
        Ok(retry_on_intr(|| fallocate(file, mode, range.start, len))?)
    }
}

#[cfg(not(target_os = "linux"))]
mod system {
    use super::{Device, File, Range, Storage, io};
    use rustix::fs::OFlags;

    pub(in super::super) const DIRECT: OFlags = OFlags::empty();

    impl Device {
        pub(in super::super) fn of(_: &File, _: u64) -> Self {
            Self {
                block: 4096,
                read_only: false,
                rotational: false,
                makes_zeroes: false,
            }
        }
    }

    pub(in super::super) fn storage(_: &File, _: bool) -> Storage {
        Storage::Other
    }

    pub(in super::super) fn reopen(_: &File) -> io::Result<File> {
        Err(io::ErrorKind::Unsupported.into())
    }

    pub(in super::super) fn write_durably(_: &File, _: &[u8], _: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    pub(in super::super) fn read_now(_: &File, _: &mut [u8], _: u64) -> io::Result<usize> {
        Err(io::ErrorKind::Unsupported.into())
    }

    pub(in super::super) fn punch_hole(_: &File, _: Range<u64>) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    pub(in super::super) fn zero_range(_: &File, _: Range<u64>) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    pub(in super::super) fn allocate(_: &File, _: Range<u64>) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// The first data at or after `offset`, or `None` if there is none in the file.
#[cfg(any(target_os = "linux", target_os = "freebsd"))]
pub(super) fn seek_data(file: &File, offset: u64) -> io::Result<Option<u64>> {
    seek(file, rustix::fs::SeekFrom::Data(offset))
}

/// The first hole at or after `offset`, such as the end of the file, or `None` if that is before.
#[cfg(any(target_os = "linux", target_os = "freebsd"))]
pub(super) fn seek_hole(file: &File, offset: u64) -> io::Result<Option<u64>> {
    seek(file, rustix::fs::SeekFrom::Hole(offset))
}

// Threads that seek at the same time confuse the offset of the file, which is not used, and not
// each other's results.
#[cfg(any(target_os = "linux", target_os = "freebsd"))]
fn seek(file: &File, to: rustix::fs::SeekFrom) -> io::Result<Option<u64>> {
    match rustix::fs::seek(file, to) {
        Ok(found) => Ok(Some(found)),
        Err(rustix::io::Errno::NXIO) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

#[cfg(not(any(target_os = "linux", target_os = "freebsd")))]
pub(super) fn seek_data(_: &File, _: u64) -> io::Result<Option<u64>> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(not(any(target_os = "linux", target_os = "freebsd")))]
pub(super) fn seek_hole(_: &File, _: u64) -> io::Result<Option<u64>> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Has a range read into the page cache, which is a hint and therefore never fails.
pub(super) fn will_need(file: &File, offset: u64, len: u64) {
    #[cfg(any(target_os = "linux", target_os = "freebsd"))]
    if let Some(len) = std::num::NonZeroU64::new(len) {
        let _ = rustix::fs::fadvise(file, offset, Some(len), rustix::fs::Advice::WillNeed);
    }
    #[cfg(not(any(target_os = "linux", target_os = "freebsd")))]
    let _ = (file, offset, len);
}
