//! The disk of a scripted server.

use crate::check::wire::export;

/// An export, and the features that can be negotiated about it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Disk {
    /// Transmission flags.
    pub(super) flags: u16,
    pub(super) has_structured: bool,
    pub(super) has_extended: bool,
    /// The minimum block size, the preferred one and the maximum payload.
    pub(super) sizes: [u32; 3],
    /// Number of requests that are waited for, a moment each, before they are answered: the last
    /// one first.
    pub(super) gathers: usize,
}

/// The size of all of them.
pub(super) const SIZE: u64 = 1 << 20;

/// Everything, but extended headers, which few clients have.
pub(super) const FULL: Disk = Disk {
    flags: export::HAS_FLAGS
        | export::FLUSH
        | export::FUA
        | export::TRIM
        | export::WRITE_ZEROES
        | export::DF
        | export::CACHE
        | export::FAST_ZERO,
    has_structured: true,
    has_extended: false,
    sizes: [1, 4096, 1 << 25],
    gathers: 1,
};

/// Extended headers, too.
pub(super) const EXTENDED: Disk = Disk {
    has_extended: true,
    ..FULL
};

/// Simple replies, reads and writes, and no more.
pub(super) const BARE: Disk = Disk {
    flags: export::HAS_FLAGS,
    has_structured: false,
    ..FULL
};

/// For reading only.
pub(super) const READ_ONLY: Disk = Disk {
    flags: export::HAS_FLAGS | export::READ_ONLY | export::DF,
    ..FULL
};

/// Large blocks and small payloads.
pub(super) const BLOCKS: Disk = Disk {
    sizes: [4096, 4096, 1 << 16],
    ..FULL
};

/// Replies in another order than requests.
pub(super) const REORDERED: Disk = Disk { gathers: 4, ..FULL };

/// Replies when the client waits for one, so that it knows of it before it sends the next request.
pub(super) const WAITING: Disk = Disk {
    gathers: 10_000,
    ..FULL
};
