//! Standard output: text, or one JSON document.

use crate::outcome::{Error, Result};
use serde::Serialize;
use std::io::Write;

/// The version of the JSON documents. It grows when a key changes its meaning or goes away.
pub(crate) const SCHEMA: u32 = 1;

/// Prints text, a whole command's at once, so that a closed pipe shows at one place.
pub(crate) fn print(text: &str) -> Result<()> {
    let mut stdout = anstream::stdout().lock();
    let printed = stdout.write_all(text.as_bytes());
    printed.and_then(|()| stdout.flush()).map_err(Error::Output)
}

/// Prints a JSON document.
pub(crate) fn json(document: &impl Serialize) -> Result<()> {
    let text =
        serde_json::to_string_pretty(document).map_err(|error| Error::Output(error.into()))?;
    print(&format!("{text}\n"))
}
