//! Replies to requests that a server may send, and those that it must not, but for the contents of
//! chunks.

use super::{
    Rule,
    disk::{BARE, FULL, REORDERED, WAITING},
    extended,
    judge::{Run, fails_then, leaves, refuses, should_refuse, tolerates},
    rule,
    scene::{Scene, Then, error_payload, honest, make_chunk, make_error, make_simple},
};
use crate::check::{
    rule::{Checked, Level::*, must, not},
    wire::{Style, chunk, command, errno},
};

const SIMPLE: &str = "Simple reply message";
const CHUNK: &str = "Structured reply chunk message";
const TRANSMISSION: &str = "Transmission";
const TERMINATING: &str = "Terminating the transmission phase";

pub(super) const RULES: &[Rule] = &[
    rule(
        "C-196",
        Must,
        "a reply with a wrong magic number is refused",
        SIMPLE,
        (FULL, magic),
        refuses,
    ),
    rule(
        "C-204",
        Must,
        "a reply with an unknown cookie is refused",
        TRANSMISSION,
        (FULL, cookie),
        refuses,
    ),
    rule(
        "C-204",
        Must,
        "a reply to no request is refused",
        TRANSMISSION,
        (FULL, unasked),
        refuses,
    ),
    rule(
        "C-198",
        Must,
        "reads by simple replies",
        SIMPLE,
        (BARE, simple),
        tolerates,
    ),
    rule(
        "C-197",
        Must,
        "a chunk without structured replies is refused",
        CHUNK,
        (BARE, chunk_too_early),
        refuses,
    ),
    rule(
        "C-200",
        Must,
        "a simple reply with data is refused with structured replies",
        CHUNK,
        (FULL, simple_read),
        refuses,
    ),
    rule(
        "C-205",
        May,
        "replies in another order than requests",
        TRANSMISSION,
        (REORDERED, honest),
        works,
    ),
    rule(
        "C-236",
        Must,
        "an end within data is an error",
        SIMPLE,
        (FULL, cut),
        refuses,
    ),
    rule(
        "H-040",
        Own,
        "an end in the place of a reply is an error",
        TERMINATING,
        (FULL, gone),
        refuses,
    ),
    rule(
        "C-199",
        Should,
        "a read that fails is no success",
        SIMPLE,
        (BARE, fails),
        fails_then,
    ),
    rule(
        "C-188",
        Must,
        "after NBD_ESHUTDOWN nothing but the end is sent",
        TERMINATING,
        (WAITING, shutdown),
        leaves,
    ),
    extended(
        "C-203",
        Must,
        "a simple reply with extended headers is refused",
        "Extended reply chunk message",
        simple_in_extended,
        refuses,
    ),
    extended(
        "C-257",
        May,
        "an extended reply with another offset",
        "Extended reply chunk message",
        other_offset,
        should_refuse,
    ),
    rule(
        "C-209",
        Should,
        "a write that fails is no success",
        "Request types",
        (FULL, write_fails),
        fails_then,
    ),
    rule(
        "C-209",
        Should,
        "nor is a flush that fails",
        "Request types",
        (FULL, flush_fails),
        fails_then,
    ),
];

/// The command works as with any server.
fn works(run: &Run) -> Checked {
    if run.commands.is_empty() {
        return not("the command sends no requests");
    }
    match run.ended()? {
        0 => Ok(()),
        code => must(format!("the command failed with exit code {code}")),
    }
}

fn magic(scene: &mut Scene) {
    if let Some(bytes) = scene.any_reply() {
        bytes[3] ^= 1;
    }
}

fn cookie(scene: &mut Scene) {
    if let Some(bytes) = scene.any_reply() {
        bytes[8] ^= 0x55;
    }
}

fn unasked(scene: &mut Scene) {
    let mut other = scene.request.clone();
    other.cookie ^= 0x5555_0000_0000;
    let style = scene.style;
    if let Some(bytes) = scene.any_reply() {
        *bytes = [make_error(style, &other, errno::EIO), bytes.clone()].concat();
    }
}

fn simple(scene: &mut Scene) {
    // It is right as it is.
    scene.read();
}

fn chunk_too_early(scene: &mut Scene) {
    let payload = scene.data(0, scene.request.len);
    let request = scene.request.clone();
    if let Some(bytes) = scene.read() {
        *bytes = make_chunk(
            Style::Structured,
            &request,
            (chunk::DONE, chunk::DATA),
            &payload,
        );
    }
}

fn simple_read(scene: &mut Scene) {
    if scene.has_chunks() {
        let data = scene.data(0, scene.request.len);
        scene.bytes = make_simple(&scene.request, 0, &data[8..]);
    }
}

fn cut(scene: &mut Scene) {
    if let Some(bytes) = scene.read() {
        bytes.truncate(bytes.len() - 1);
        scene.then = Then::Close;
    }
}

fn gone(scene: &mut Scene) {
    if let Some(bytes) = scene.any_reply() {
        bytes.clear();
        scene.then = Then::Close;
    }
}

fn fails(scene: &mut Scene) {
    fail(scene, command::READ);
}

fn shutdown(scene: &mut Scene) {
    if scene.has_chunks() {
        scene.chunk(
            chunk::DONE,
            chunk::ERROR,
            &error_payload(errno::ESHUTDOWN, ""),
        );
        scene.then = Then::LastWords;
    }
}

fn simple_in_extended(scene: &mut Scene) {
    if scene.style == Style::Extended && scene.has_chunks() {
        scene.bytes = make_simple(&scene.request, errno::EIO, &[]);
        scene.then = Then::Close;
    }
}

fn other_offset(scene: &mut Scene) {
    if scene.style == Style::Extended && scene.has_chunks() {
        scene.bytes[16] ^= 1;
    }
}

/// Replies by an error to this command.
fn fail(scene: &mut Scene, command: u16) {
    if scene.is_reply_to(command) {
        scene.bytes = make_error(scene.style, &scene.request, errno::EIO);
    }
}

fn write_fails(scene: &mut Scene) {
    fail(scene, command::WRITE);
}

fn flush_fails(scene: &mut Scene) {
    fail(scene, command::FLUSH);
}
