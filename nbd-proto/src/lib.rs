#![doc = include_str!("../README.md")]
#![cfg_attr(not(feature = "std"), no_std)]
#![forbid(unsafe_code)]
#![deny(missing_docs)]

extern crate alloc;

mod names;

pub use names::{ContextName, ExportName, MAX_STRING, NameError, Text};
