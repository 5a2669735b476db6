//! The common part of the examples of this crate: the choice of a runtime.

use clap::ValueEnum;
use std::io;
use tokio::runtime::{Builder, Runtime};

/// A kind of runtime.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Flavour {
    /// Everything is done by one thread.
    Current,
    /// There is a thread for each processor.
    Multi,
}

impl Flavour {
    pub(crate) fn build(self) -> io::Result<Runtime> {
        let mut builder = match self {
            Self::Current => Builder::new_current_thread(),
            Self::Multi => Builder::new_multi_thread(),
        };
        builder.enable_all().build()
    }
}
