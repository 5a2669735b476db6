#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod changes;
mod check;
mod collect;
mod compact;
mod compression;
mod directory;
mod disk;
mod error;
mod export;
mod format;
mod local_cache;
mod location;
mod map;
mod options;
mod probe;
mod puts;
mod records;
mod runtime;
mod statistics;
mod store;

pub use check::Report;
pub use collect::Collected;
pub use compact::Compacted;
pub use directory::Directory;
pub use disk::{Disk, Extent};
pub use error::{Damage, Error};
pub use local_cache::LocalCache;
pub use location::{Info, Location, Snapshot};
pub use options::{Compression, Layout, Options};
pub use statistics::{Histogram, Statistics};
pub use store::Retry;

#[doc = include_str!("../docs/format.md")]
pub mod object_format {}

/// The stores that a disk can be in, and their builders.
pub use object_store;

#[cfg(test)]
mod tests;
