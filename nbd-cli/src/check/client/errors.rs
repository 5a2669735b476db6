//! Error chunks and status chunks, as they may be and as they must not be.

use super::{
    Rule,
    disk::FULL,
    host::CONTEXT,
    judge::{fails_then, refuses, survives, tolerates},
    rule,
    scene::{Scene, error_payload, status_payload},
};
use crate::check::{
    rule::Level::*,
    wire::{chunk, errno},
};

const TYPES: &str = "Structured reply types";
const READ: &str = "Request types";
const ERRORS: &str = "Error values";

const DONE: u16 = chunk::DONE;

pub(super) const RULES: &[Rule] = &[
    rule(
        "C-221",
        Should,
        "an error after all of the data is no success",
        TYPES,
        (FULL, late_error),
        fails_then,
    ),
    rule(
        "C-213",
        Should,
        "an unknown error chunk is no success",
        TYPES,
        (FULL, unknown_error),
        fails_then,
    ),
    rule(
        "C-219",
        Should,
        "an unlisted error is no success",
        ERRORS,
        (FULL, unlisted_error),
        fails_then,
    ),
    rule(
        "C-214",
        Must,
        "a message longer than its chunk is refused",
        TYPES,
        (FULL, long_message),
        refuses,
    ),
    rule(
        "C-215",
        Must,
        "an error chunk with the error 0 is refused",
        TYPES,
        (FULL, no_error),
        refuses,
    ),
    rule(
        "C-217",
        Must,
        "an error outside its read is refused",
        TYPES,
        (FULL, error_offset),
        refuses,
    ),
    rule(
        "C-241",
        Must,
        "the status of another context is refused",
        READ,
        (FULL, other_context),
        refuses,
    ),
    rule(
        "C-242",
        Must,
        "no status at all is no success",
        READ,
        (FULL, no_status),
        survives,
    ),
    rule(
        "C-243",
        Must,
        "an extent of length 0 is refused",
        TYPES,
        (FULL, empty_extent),
        refuses,
    ),
    rule(
        "C-238",
        Must,
        "half an extent is refused",
        TYPES,
        (FULL, half_extent),
        refuses,
    ),
    rule(
        "C-246",
        May,
        "an extent that is longer than the request",
        TYPES,
        (FULL, long_extent),
        tolerates,
    ),
    rule(
        "C-247",
        May,
        "statuses of less than the request",
        TYPES,
        (FULL, short_extent),
        tolerates,
    ),
    rule(
        "C-252",
        Must,
        "unknown status flags are ignored",
        "`base:allocation` metadata context",
        (FULL, status_flags),
        tolerates,
    ),
];

/// Replies with these extents.
fn status(scene: &mut Scene, id: u32, extents: &[(u64, u64)]) {
    if scene.has_status() {
        let (kind, payload) = status_payload(scene.style, id, extents);
        scene.chunk(DONE, kind, &payload);
    }
}

fn late_error(scene: &mut Scene) {
    if scene.has_chunks() {
        let data = scene.data(0, scene.request.len);
        scene.chunk(0, chunk::DATA, &data);
        scene.and(
            DONE,
            chunk::ERROR,
            &error_payload(errno::EIO, "the medium \u{1b}[31m is broken"),
        );
    }
}

fn unknown_error(scene: &mut Scene) {
    if scene.has_chunks() {
        let mut payload = error_payload(errno::EIO, "an error of another kind");
        payload.extend([1, 2, 3]);
        scene.chunk(DONE, 0xce42, &payload);
    }
}

fn unlisted_error(scene: &mut Scene) {
    if scene.has_chunks() {
        scene.chunk(DONE, chunk::ERROR, &error_payload(9999, ""));
    }
}

fn long_message(scene: &mut Scene) {
    if scene.has_chunks() {
        let mut payload = error_payload(errno::EIO, "short");
        payload[4] = 0x0f;
        scene.chunk(DONE, chunk::ERROR, &payload);
    }
}

fn no_error(scene: &mut Scene) {
    if scene.has_chunks() {
        let data = scene.data(0, scene.request.len);
        scene.chunk(0, chunk::DATA, &data);
        scene.and(DONE, chunk::ERROR, &error_payload(0, ""));
    }
}

fn error_offset(scene: &mut Scene) {
    if scene.has_chunks() {
        let mut payload = error_payload(errno::EIO, "");
        payload.extend(u64::MAX.to_be_bytes());
        scene.chunk(DONE, chunk::ERROR_OFFSET, &payload);
    }
}

fn other_context(scene: &mut Scene) {
    status(scene, CONTEXT + 1, &[(scene.request.len, 0)]);
}

fn no_status(scene: &mut Scene) {
    if scene.has_status() {
        scene.chunk(DONE, chunk::NONE, &[]);
    }
}

fn empty_extent(scene: &mut Scene) {
    status(scene, CONTEXT, &[(0, 0), (scene.request.len, 0)]);
}

fn half_extent(scene: &mut Scene) {
    if scene.has_status() {
        let (kind, mut payload) = status_payload(scene.style, CONTEXT, &[(scene.request.len, 0)]);
        payload.extend([0; 4]);
        scene.chunk(DONE, kind, &payload);
    }
}

fn long_extent(scene: &mut Scene) {
    let asked_for_one = scene.request.flags != 0;
    let more = if asked_for_one { 0 } else { 1 << 20 };
    status(scene, CONTEXT, &[(scene.request.len + more, 0)]);
}

fn short_extent(scene: &mut Scene) {
    status(scene, CONTEXT, &[(scene.request.len.min(65_536), 0)]);
}

fn status_flags(scene: &mut Scene) {
    status(scene, CONTEXT, &[(scene.request.len, 0x5000_0000)]);
}
