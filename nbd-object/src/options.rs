//! Choices of a disk's creator and of a program that opens it.

use crate::{LocalCache, Retry};
use std::time::Duration;

/// The choices that are made with a new disk, and stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Layout {
    /// The size of a block in bytes: a power of two from 4 to 64 KiB. One record holds one block,
    /// so that this is the smallest amount that is got or put. 64 KiB unless set.
    pub block_size: u32,
}

impl Default for Layout {
    fn default() -> Self {
        Self {
            block_size: 64 << 10,
        }
    }
}

impl Layout {
    /// The same with blocks of `bytes`.
    #[must_use]
    pub fn block_size(mut self, bytes: u32) -> Self {
        self.block_size = bytes;
        self
    }
}

/// The compression of records.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Compression {
    /// None.
    #[default]
    Off,
    /// By zstd, at a level from 1 to 22. Records that would not shrink by an eighth stay as they
    /// are. It takes the feature `zstd`, and opening fails without it.
    Zstd(i32),
}

/// The choices that are made with every opening.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Options {
    /// Limit of writes in memory that are not in the store, in bytes; 64 MiB unless set. A write
    /// waits while there are more. When half of it is reached, a commit begins by itself. The bytes of a
    /// commit are among them, also the stored rests of blocks that were written in part; with
    /// compression, its records come on top, up to as much again.
    pub dirty_limit: u64,
    /// Limit of blocks kept for reads, in bytes; 64 MiB unless set. Beside them, records that are being
    /// got take up to half as much, and at least 4 MiB; further gets wait.
    pub cache_size: u64,
    /// A cache on a local disk beside the one in memory; none unless set.
    pub local_cache: Option<LocalCache>,
    /// Limit of pages of the map kept, in bytes; 16 MiB unless set. A page of 5 KiB covers 16 MiB of
    /// a disk with blocks of 64 KiB.
    pub map_cache_size: u64,
    /// The size at which a segment is full, in bytes: 1 to 64 MiB; 4 MiB unless set.
    pub segment_size: u32,
    /// Limit of a get, in bytes; 1 MiB unless set. Longer reads are got in parts at the same time.
    pub get_size: u32,
    /// Limit of the bytes that are got ahead of a sequential reader, up to a quarter of the cache;
    /// 8 MiB unless set, none if zero.
    pub read_ahead: u64,
    /// The compression of new records.
    pub compression: Compression,
    /// The policy for requests that fail.
    pub retry: Retry,
    /// Age from which garbage is deleted; an hour unless set. Until then, a program that has the
    /// disk open for reading only can go on with a head that is out of date.
    pub horizon: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            dirty_limit: 64 << 20,
            cache_size: 64 << 20,
            local_cache: None,
            map_cache_size: 16 << 20,
            segment_size: 4 << 20,
            get_size: 1 << 20,
            read_ahead: 8 << 20,
            compression: Compression::Off,
            retry: Retry::default(),
            horizon: Duration::from_secs(3600),
        }
    }
}

macro_rules! setters {
    ($($name:ident: $type:ty,)+) => {
        impl Options {
            /// The defaults.
            #[must_use]
            pub fn new() -> Self {
                Self::default()
            }

            $(
                #[doc = concat!("Sets [`", stringify!($name), "`](Self#structfield.", stringify!($name), ").")]
                #[must_use]
                pub fn $name(mut self, value: $type) -> Self {
                    self.$name = value;
                    self
                }
            )+
        }
    };
}

setters! {
    dirty_limit: u64,
    cache_size: u64,
    local_cache: Option<LocalCache>,
    map_cache_size: u64,
    segment_size: u32,
    get_size: u32,
    read_ahead: u64,
    compression: Compression,
    retry: Retry,
    horizon: Duration,
}
