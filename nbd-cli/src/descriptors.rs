//! The limit of open descriptors (`ulimit -n`).

use crate::outcome::{Error, Result};
use rustix::{
    io::Errno,
    process::{Resource, getrlimit},
};
use std::{
    error::Error as StdError,
    io,
    iter::repeat_with,
    os::fd::{AsFd, OwnedFd},
};

/// The descriptors that a command may need as long as the user asks for nothing special: a copy between
/// two servers in this process.
const NEEDED: usize = 48;

/// Checks that a command can open as many descriptors as it may need. With fewer, Tokio panics while it
/// prepares for signals, and a server in this process would accept no client.
pub(crate) fn check() -> Result<()> {
    let stderr = io::stderr();
    let all: io::Result<Vec<OwnedFd>> = repeat_with(|| stderr.as_fd().try_clone_to_owned())
        .take(NEEDED)
        .collect();
    match all {
        Err(error) if is_limit(&error) => Err(Error::new(format!(
            "cannot open {NEEDED} files and sockets, which nbd needs{}",
            advice()
        ))),
        _ => Ok(()),
    }
}

/// The limit and a remedy, if a step failed because of it.
pub(crate) fn remedy(error: &Error) -> Option<String> {
    let mut cause: Option<&(dyn StdError + 'static)> = Some(error);
    while let Some(error) = cause {
        if error.downcast_ref().is_some_and(is_limit) {
            return Some(advice());
        }
        cause = error.source();
    }
    None
}

fn is_limit(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::MFILE.raw_os_error())
}

fn advice() -> String {
    let limit = getrlimit(Resource::Nofile).current;
    let limit = limit.map_or_else(String::new, |limit| format!(" is {limit}"));
    format!(": the limit of open descriptors{limit}; \"ulimit -n 1024\" raises it")
}
