//! Standard output: text, or one JSON document.

use crate::{
    outcome::{Error, Result},
    text,
};
use serde::Serialize;
use std::{
    fmt,
    io::{BufWriter, Write},
};

/// The version of the JSON documents. It grows when a key changes its meaning or goes away.
pub(crate) const SCHEMA: u32 = 1;

/// Prints text.
pub(crate) fn print(text: &str) -> Result<()> {
    let mut stdout = Lines::new();
    stdout.put(format_args!("{text}"))?;
    stdout.finish()
}

/// Prints a JSON document.
pub(crate) fn json(document: &impl Serialize) -> Result<()> {
    let text =
        serde_json::to_string_pretty(document).map_err(|error| Error::Output(error.into()))?;
    print(&format!("{}\n", text::json(&text)))
}

/// Text that is printed as it comes, for commands that may have much to say.
pub(crate) struct Lines(BufWriter<anstream::AutoStream<std::io::StdoutLock<'static>>>);

impl Lines {
    pub(crate) fn new() -> Self {
        Self(BufWriter::with_capacity(
            64 << 10,
            anstream::stdout().lock(),
        ))
    }

    /// Prints more.
    pub(crate) fn put(&mut self, text: fmt::Arguments<'_>) -> Result<()> {
        self.0.write_fmt(text).map_err(Error::Output)
    }

    /// Prints the lines that are still held back.
    pub(crate) fn finish(mut self) -> Result<()> {
        self.0.flush().map_err(Error::Output)
    }
}
