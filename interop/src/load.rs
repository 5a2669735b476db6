//! Loads for servers, and the memory that they take there.

use std::{fs, io};

/// A read or a write of a load.
#[derive(Clone, Copy, Debug)]
pub struct Access {
    /// Its first byte.
    pub offset: u64,
    /// Its length in bytes, of at most 256 KiB.
    pub len: usize,
    /// Whether it is a write.
    pub is_write: bool,
}

/// So many reads and writes of 4 to 256 KiB, at so many places of a disk of 1 TiB. They are the same
/// each time.
pub fn mixed_load(requests: u32, places: u64) -> impl Iterator<Item = Access> {
    let mut random = fastrand::Rng::with_seed(1);
    (0..requests).map(move |_| Access {
        len: 4096 << random.u32(0..=6),
        offset: random.u64(0..places) * ((1 << 40) / places) + random.u64(0..64) * 4096,
        is_write: random.bool(),
    })
}

/// The most memory that a process has had so far, in KiB.
///
/// # Errors
///
/// When there is no such process, or this system does not count it.
pub fn peak_memory(process: u32) -> io::Result<u64> {
    let status = fs::read_to_string(format!("/proc/{process}/status"))?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let peak = peak.and_then(|peak| peak.split_whitespace().next()?.parse().ok());
    peak.ok_or_else(|| io::Error::other("a process without memory"))
}
