//! The common part of the modules.

use std::error::Error as _;

use interop::{Certificates, Endpoint, Server};
pub(crate) use interop::{KIB, MIB, assert_same, info, map, pattern, run};
use nbd_proto::uri::Permissions;

use crate::driver::{
    Client, ConnectOptions, ContextName, Error, ExportName, Go, ListEntry, StatusRun, Uri,
};

/// Connects as most programs would, with the URI's files allowed.
pub(crate) fn options() -> ConnectOptions {
    ConnectOptions::new().local_files(true)
}

/// Enters an export of a server without TLS, with its allocation.
pub(crate) fn connect(server: &Server, export: &str) -> Client {
    options()
        .context(ContextName::base_allocation())
        .connect(&server.uri(export))
        .unwrap()
}

/// A URI over TLS that works on Unix sockets too, where only the query can name the server.
pub(crate) fn secure_uri(server: &Server, export: &str, certificates: &Certificates) -> String {
    let uri = server.tls_uri(export, certificates);
    match server.endpoint() {
        Endpoint::Unix(_) => format!("{uri}&tls-hostname=localhost"),
        _ => uri,
    }
}

pub(crate) fn name(name: &str) -> ExportName {
    ExportName::new(name).unwrap()
}

pub(crate) fn context(name: &str) -> ContextName {
    ContextName::new(name).unwrap()
}

pub(crate) fn go(export: &str) -> Go {
    Go::new(name(export))
}

pub(crate) fn uri(uri: &str) -> Uri {
    Uri::parse_with(uri, Permissions::default().local_files()).unwrap()
}

/// Names and descriptions of a list.
pub(crate) fn names(list: &[ListEntry]) -> Vec<(&str, &str)> {
    list.iter()
        .map(|entry| {
            let name = entry.name.as_ref().unwrap();
            (name.as_str(), entry.description.as_str())
        })
        .collect()
}

/// An error and all its causes, as a program would print them.
pub(crate) fn causes(error: &Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

/// Checks that an error's causes contain these texts.
#[track_caller]
pub(crate) fn assert_names(error: &Error, what: &[&str]) {
    let text = causes(error);
    for what in what {
        assert!(text.contains(what), "no {what:?} in {text:?}");
    }
}

/// Reads a range.
#[track_caller]
pub(crate) fn read(client: &Client, offset: u64, len: u64) -> Vec<u8> {
    let mut buf = vec![0xee; usize::try_from(len).unwrap()];
    client.read_exact_at(&mut buf, offset).unwrap();
    buf
}

/// Checks that a range has these bytes, without printing megabytes if it has not.
#[track_caller]
pub(crate) fn assert_has(client: &Client, offset: u64, expected: &[u8]) {
    let found = read(client, offset, expected.len() as u64);
    assert_same(&found, expected, offset);
}

/// Offset, length and status of every extent of the first context.
pub(crate) fn extents(client: &Client) -> Vec<(u64, u64, u64)> {
    let runs: Result<Vec<StatusRun>, Error> = client.extents(0..client.size()).collect();
    runs.unwrap()
        .iter()
        .map(|run| (run.offset, run.len, run.status[0]))
        .collect()
}
