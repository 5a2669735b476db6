#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]
#![deny(missing_docs)]

pub mod client;
mod errno;
mod export;
pub mod transport;

pub use errno::{failure, fast_zero_failure, reportable};
pub use export::{Export, MetaContext, ZeroMode};
