//! Chunks of reads, as they may be and as they must not be.

use super::{
    Rule,
    disk::FULL,
    host::CONTEXT,
    judge::{refuses, should_refuse, tolerates},
    rule,
    scene::{Scene, status_payload},
};
use crate::check::{
    rule::Level::*,
    wire::{Style, chunk},
};

const TYPES: &str = "Structured reply types";
const FLAGS: &str = "Structured reply flags";
const READ: &str = "Request types";
const CHUNK: &str = "Structured reply chunk message";

const DONE: u16 = chunk::DONE;

pub(super) const RULES: &[Rule] = &[
    rule(
        "C-229",
        Must,
        "chunks in another order than their bytes",
        READ,
        (FULL, backwards),
        tolerates,
    ),
    rule(
        "C-207",
        Must,
        "NBD_REPLY_TYPE_NONE as the last chunk",
        TYPES,
        (FULL, none_last),
        tolerates,
    ),
    rule(
        "C-206",
        Must,
        "unknown reply flags are ignored",
        FLAGS,
        (FULL, reply_flags),
        tolerates,
    ),
    rule(
        "C-228",
        Must,
        "a hole in the place of data",
        TYPES,
        (FULL, hole),
        tolerates,
    ),
    rule(
        "C-210",
        Must,
        "NBD_REPLY_TYPE_NONE with a payload is refused",
        TYPES,
        (FULL, none_with_payload),
        refuses,
    ),
    rule(
        "C-211",
        Must,
        "an unknown chunk is refused",
        TYPES,
        (FULL, unknown_chunk),
        refuses,
    ),
    rule(
        "C-212",
        Must,
        "a status chunk in a read is refused",
        TYPES,
        (FULL, foreign_chunk),
        refuses,
    ),
    rule(
        "C-224",
        Must,
        "NBD_REPLY_TYPE_OFFSET_DATA without data is refused",
        TYPES,
        (FULL, no_data),
        refuses,
    ),
    rule(
        "C-225",
        Must,
        "data beyond the end of a read is refused",
        TYPES,
        (FULL, beyond),
        refuses,
    ),
    rule(
        "C-225",
        Must,
        "data before a read is refused",
        TYPES,
        (FULL, before),
        refuses,
    ),
    rule(
        "C-226",
        May,
        "the same data twice",
        TYPES,
        (FULL, twice),
        should_refuse,
    ),
    rule(
        "C-227",
        Must,
        "a hole of size 0 is refused",
        TYPES,
        (FULL, empty_hole),
        refuses,
    ),
    rule(
        "C-227",
        Must,
        "a hole beyond the end of a read is refused",
        TYPES,
        (FULL, long_hole),
        refuses,
    ),
    rule(
        "C-230",
        May,
        "a read without all of its data",
        READ,
        (FULL, gap),
        should_refuse,
    ),
    rule(
        "H-027",
        Own,
        "a chunk of 4 GiB is refused",
        CHUNK,
        (FULL, huge),
        refuses,
    ),
];

/// Two halves of the data of a read, as it is right.
fn halves(scene: &Scene) -> Option<[Vec<u8>; 2]> {
    let header = if scene.style == Style::Extended {
        32
    } else {
        20
    };
    let payload = scene.bytes.get(header..)?;
    let (offset, data) = payload.split_at_checked(8)?;
    let (first, second) = data.split_at_checked(data.len() / 2)?;
    let middle = scene.request.offset + first.len() as u64;
    let has_both = !first.is_empty();
    has_both.then(|| {
        [
            [offset, first].concat(),
            [&middle.to_be_bytes(), second].concat(),
        ]
    })
}

/// The payload of a hole.
fn hole_of(scene: &Scene, from: u64, len: u64) -> Vec<u8> {
    let mut payload = (scene.request.offset + from).to_be_bytes().to_vec();
    payload.extend(&len.to_be_bytes()[4..]);
    payload
}

fn backwards(scene: &mut Scene) {
    if scene.has_chunks()
        && let Some([first, second]) = halves(scene)
    {
        scene.chunk(0, chunk::DATA, &second);
        scene.and(DONE, chunk::DATA, &first);
    }
}

fn none_last(scene: &mut Scene) {
    if scene.has_chunks()
        && let Some([first, second]) = halves(scene)
    {
        scene.chunk(0, chunk::DATA, &first);
        scene.and(0, chunk::DATA, &second);
        scene.and(DONE, chunk::NONE, &[]);
    }
}

fn reply_flags(scene: &mut Scene) {
    if scene.has_chunks() {
        scene.bytes[4] |= 0x40;
    }
}

fn hole(scene: &mut Scene) {
    if scene.has_chunks() {
        let payload = hole_of(scene, 0, scene.request.len);
        scene.chunk(DONE, chunk::HOLE, &payload);
    }
}

fn none_with_payload(scene: &mut Scene) {
    if scene.has_chunks() {
        let data = scene.data(0, scene.request.len);
        scene.chunk(0, chunk::DATA, &data);
        scene.and(DONE, chunk::NONE, b"data");
    }
}

fn unknown_chunk(scene: &mut Scene) {
    if scene.has_chunks() {
        let data = scene.data(0, scene.request.len);
        scene.chunk(0, 0x4e42, b"data");
        scene.and(DONE, chunk::DATA, &data);
    }
}

fn foreign_chunk(scene: &mut Scene) {
    if scene.has_chunks() {
        let data = scene.data(0, scene.request.len);
        let (kind, payload) = status_payload(scene.style, CONTEXT, &[(512, 0)]);
        scene.chunk(0, kind, &payload);
        scene.and(DONE, chunk::DATA, &data);
    }
}

fn no_data(scene: &mut Scene) {
    if scene.has_chunks() {
        let (none, all) = (scene.data(0, 0), scene.data(0, scene.request.len));
        scene.chunk(0, chunk::DATA, &none);
        scene.and(DONE, chunk::DATA, &all);
    }
}

fn beyond(scene: &mut Scene) {
    if scene.has_chunks() {
        let data = scene.data(0, scene.request.len + 512);
        scene.chunk(DONE, chunk::DATA, &data);
    }
}

fn before(scene: &mut Scene) {
    if scene.has_chunks() {
        let data = scene.data(0, scene.request.len);
        let mut early = scene.data(0, 512);
        early[..8].copy_from_slice(&scene.request.offset.wrapping_sub(512).to_be_bytes());
        scene.chunk(0, chunk::DATA, &early);
        scene.and(DONE, chunk::DATA, &data);
    }
}

fn twice(scene: &mut Scene) {
    if scene.has_chunks() {
        let data = scene.data(0, scene.request.len);
        scene.chunk(0, chunk::DATA, &data);
        scene.and(DONE, chunk::DATA, &data);
    }
}

fn empty_hole(scene: &mut Scene) {
    if scene.has_chunks() {
        let (hole, data) = (hole_of(scene, 0, 0), scene.data(0, scene.request.len));
        scene.chunk(0, chunk::HOLE, &hole);
        scene.and(DONE, chunk::DATA, &data);
    }
}

fn long_hole(scene: &mut Scene) {
    if scene.has_chunks() {
        let payload = hole_of(scene, 0, scene.request.len + 512);
        scene.chunk(DONE, chunk::HOLE, &payload);
    }
}

fn gap(scene: &mut Scene) {
    if scene.has_chunks() {
        let data = scene.data(
            0,
            scene
                .request
                .len
                .div_ceil(2)
                .min(scene.request.len - 1)
                .max(1),
        );
        scene.chunk(DONE, chunk::DATA, &data);
    }
}

fn huge(scene: &mut Scene) {
    if scene.has_chunks() {
        let at = if scene.style == Style::Extended {
            28
        } else {
            16
        };
        scene.bytes[at..at + 4].fill(0xff);
    }
}
