//! Checks whether a file can be exported, and with which properties.

use super::host;
use nbd_proto::BlockSizes;
use rustix::fs::OFlags;
use std::{
    fs,
    io::{self, ErrorKind, Seek, SeekFrom},
    os::unix::fs::FileTypeExt,
};

pub(super) fn check_type(kind: fs::FileType) -> io::Result<()> {
    if kind.is_file() || kind.is_block_device() {
        return Ok(());
    }
    let kind = if kind.is_dir() {
        "a directory"
    } else if kind.is_char_device() {
        "a character device"
    } else if kind.is_fifo() {
        "a pipe"
    } else if kind.is_socket() {
        "a socket"
    } else {
        "anything else"
    };
    Err(io::Error::new(
        ErrorKind::InvalidInput,
        format!("a regular file or a block device can be exported, and not {kind}"),
    ))
}

/// Whether a file that was opened like this is read-only.
pub(super) fn check_mode(flags: OFlags) -> io::Result<bool> {
    let mode = flags & OFlags::ACCMODE;
    let problem = if mode == OFlags::WRONLY {
        "for writing only"
    } else if flags.contains(OFlags::APPEND) {
        "for appending"
    } else if flags.intersects(host::DIRECT) {
        "without the page cache"
    } else {
        return Ok(mode == OFlags::RDONLY);
    };
    Err(io::Error::new(
        ErrorKind::InvalidInput,
        format!("a file that is open {problem} cannot be exported"),
    ))
}

/// The size of a regular file, or of a block device where that ends where one can seek to.
pub(super) fn size(mut file: &fs::File) -> io::Result<u64> {
    let metadata = file.metadata()?;
    if metadata.is_file() {
        return Ok(metadata.len());
    }
    let size = file.seek(SeekFrom::End(0))?;
    if size == 0 && cfg!(not(target_os = "linux")) {
        return Err(io::Error::new(
            ErrorKind::Unsupported,
            "the size of a block device cannot be found out on this system",
        ));
    }
    Ok(size)
}

/// Any offset and length, but preferably the file system's unit of I/O.
pub(super) fn block_sizes(preferred: u64) -> BlockSizes {
    let unknown = BlockSizes::UNKNOWN;
    let maximum = unknown.maximum();
    let preferred = u32::try_from(preferred)
        .unwrap_or(maximum)
        .clamp(512, maximum)
        .next_power_of_two();
    BlockSizes::new(unknown.minimum(), preferred, maximum).unwrap_or(unknown)
}
