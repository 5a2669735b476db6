//! The description of an export by libnbd's `nbdinfo`, as a second opinion.

use serde_json::Value;

use crate::{Peer, require};

/// The extents of one context by libnbd, with equal neighbours merged; `None` without libnbd.
///
/// # Panics
///
/// When `nbdinfo` fails.
pub fn map(uri: &str, context: &str) -> Option<Vec<(u64, u64, u64)>> {
    let nbdinfo = require(Peer::NbdInfo)?;
    let said = nbdinfo
        .run(["--json", &format!("--map={context}"), uri])
        .expect_success();
    let map = json(&said);
    let field = |extent: &Value, name: &str| extent[name].as_u64().expect("an extent has numbers");
    let mut merged: Vec<(u64, u64, u64)> = Vec::new();
    for extent in map.as_array().expect("a map is an array") {
        let (offset, len) = (field(extent, "offset"), field(extent, "length"));
        let status = field(extent, "type");
        match merged.last_mut() {
            Some(last) if last.2 == status => last.1 += len,
            _ => merged.push((offset, len, status)),
        }
    }
    Some(merged)
}

/// The description of an export by libnbd; `None` without libnbd.
///
/// # Panics
///
/// When `nbdinfo` fails.
pub fn info(uri: &str) -> Option<Value> {
    let nbdinfo = require(Peer::NbdInfo)?;
    let said = nbdinfo.run(["--json", uri]).expect_success();
    let info = json(&said);
    Some(info["exports"][0].clone())
}

fn json(said: &str) -> Value {
    serde_json::from_str(said).expect("nbdinfo prints JSON with --json")
}
