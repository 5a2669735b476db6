#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]
#![cfg_attr(not(feature = "std"), no_std)]
#![forbid(unsafe_code)]
#![deny(missing_docs)]

extern crate alloc;

pub mod client;
mod error;
mod export;
mod frame;
mod gather;
pub mod meta;
mod names;
mod phase;
pub mod server;
pub mod uri;
pub mod wire;

pub use error::{Error, Failure, Misuse, OptionError};
pub use export::{BlockSizes, ExportInfo};
pub use frame::{Bare, Frame, Header};
pub use names::{ContextName, ExportName, MAX_STRING, NameError, Text};
pub use phase::{Phase, Step};
pub use uri::{Uri, UriError};
pub use wire::{Command, CommandFlags, Errno, HeaderStyle, TransmissionFlags};
