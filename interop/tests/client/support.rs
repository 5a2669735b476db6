//! What the modules have in common.

use std::{error::Error as _, time::Duration};

use interop::{Certificates, Endpoint, Peer, Server, deadline, require};
use nbd_blocking::{
    Client, ConnectOptions, ContextName, Error, ExportName, Go, ListEntry, Stretch, Uri,
};
use nbd_proto::uri::Permissions;
use serde_json::Value;

pub(crate) const KIB: u64 = 1 << 10;
pub(crate) const MIB: u64 = 1 << 20;

/// Ample even for a loaded machine: a test that reaches it hangs.
const LIMIT: Duration = Duration::from_secs(100);

/// Runs a test's body with a time limit.
pub(crate) fn run(body: impl FnOnce() + Send + 'static) {
    deadline(LIMIT, body);
}

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

/// Checks that an error's causes name what went wrong.
#[track_caller]
pub(crate) fn assert_names(error: &Error, what: &[&str]) {
    let text = causes(error);
    for what in what {
        assert!(text.contains(what), "no {what:?} in {text:?}");
    }
}

/// Bytes that are at no two places the same, and the same for the same seed.
pub(crate) fn pattern(seed: u64, len: u64) -> Vec<u8> {
    const BLOCK: usize = 4096;
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_be_bytes()
    };
    // Making all of them anew would take most of the time of tests that are not optimised.
    let block: Vec<u8> = (0..BLOCK / 8).flat_map(|_| next()).collect();
    let len = usize::try_from(len).unwrap();
    let mut bytes = Vec::with_capacity(len + BLOCK);
    while bytes.len() < len {
        let start = bytes.len();
        bytes.extend_from_slice(&block);
        bytes[start..start + 8].copy_from_slice(&next());
    }
    bytes.truncate(len);
    bytes
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

#[track_caller]
pub(crate) fn assert_same(found: &[u8], expected: &[u8], offset: u64) {
    if found != expected {
        let wrong = found.iter().zip(expected).position(|(a, b)| a != b);
        let (found, expected) = (found.len(), expected.len());
        panic!("of {found} bytes at {offset}, expected {expected}, the first wrong is {wrong:?}");
    }
}

/// Offset, length and status of every extent of the first context.
pub(crate) fn extents(client: &Client) -> Vec<(u64, u64, u64)> {
    let stretches: Result<Vec<Stretch>, Error> = client.extents(0..client.size()).collect();
    stretches
        .unwrap()
        .iter()
        .map(|stretch| (stretch.offset, stretch.len, stretch.status[0]))
        .collect()
}

/// What libnbd says of one context, with equal neighbours merged; `None` without libnbd.
pub(crate) fn map(uri: &str, context: &str) -> Option<Vec<(u64, u64, u64)>> {
    let nbdinfo = require(Peer::NbdInfo)?;
    let said = nbdinfo
        .run(["--json", &format!("--map={context}"), uri])
        .expect_success();
    let map: Value = serde_json::from_str(&said).unwrap();
    let field = |extent: &Value, name: &str| extent[name].as_u64().unwrap();
    let mut merged: Vec<(u64, u64, u64)> = Vec::new();
    for extent in map.as_array().unwrap() {
        let (offset, len) = (field(extent, "offset"), field(extent, "length"));
        let status = field(extent, "type");
        match merged.last_mut() {
            Some(last) if last.2 == status => last.1 += len,
            _ => merged.push((offset, len, status)),
        }
    }
    Some(merged)
}

/// What libnbd says of an export; `None` without libnbd.
pub(crate) fn info(uri: &str) -> Option<Value> {
    let nbdinfo = require(Peer::NbdInfo)?;
    let said = nbdinfo.run(["--json", uri]).expect_success();
    let info: Value = serde_json::from_str(&said).unwrap();
    Some(info["exports"][0].clone())
}
