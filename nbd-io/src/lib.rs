#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]
#![forbid(unsafe_code)]
#![deny(missing_docs)]

mod api;
pub mod client;
#[cfg(unix)]
mod directory;
mod errno;
mod export;
mod exports;
mod faulty;
#[cfg(unix)]
mod file;
mod memory;
#[cfg(test)]
mod model;
#[doc(hidden)]
pub mod mutation;
mod overlay;
mod read_only;
pub mod runtime;
pub mod server;
mod slice;
#[cfg(feature = "tls")]
pub mod tls;
pub mod transport;
mod unblock;
mod watchers;
#[doc(hidden)]
pub mod zeroes;

#[cfg(unix)]
pub use directory::Directory;
pub use errno::{failure, fast_zero_failure, reportable};
pub(crate) use export::Kind;
pub use export::{
    AnyExport, AsyncExport, Content, Export, MetaContext, Piece, ReadData, ZeroMode, export_info,
};
pub use exports::{
    AsyncExports, Exports, ExportsByName, Listing, NamedExports, Offer, Unavailable,
};
pub use faulty::{Fault, Faults, Faulty};
#[cfg(unix)]
pub use file::File;
pub use memory::Memory;
pub use nbd_proto;
pub use overlay::{Overlay, OverlayError};
pub use read_only::ReadOnly;
pub use slice::{Slice, SliceError};
pub use unblock::{Blocking, Unblock};
#[doc(hidden)]
pub use {bytes, futures_core};
