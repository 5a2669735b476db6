//! Messages that a server may send before requests, and those that it must not.

use super::{
    Rule,
    disk::{FULL, SIZE},
    judge::{fails_then, leaves, refuses, should_refuse, should_tolerate, survives, tolerates},
    rule,
    scene::{
        Event, Scene, Then, export_info, go_export, make_go_info, make_option_reply, size_info,
    },
};
use crate::check::{
    rule::Level::*,
    wire::{Style, export, kind, option, rep},
};

const NEWSTYLE: &str = "Newstyle negotiation";
const FIXED: &str = "Fixed newstyle negotiation";
const TYPES: &str = "Option types";
const REPLIES: &str = "Option reply types";

pub(super) const RULES: &[Rule] = &[
    rule(
        "C-006",
        Must,
        "another magic number than NBDMAGIC is refused",
        NEWSTYLE,
        (FULL, first_magic),
        refuses,
    ),
    rule(
        "C-007",
        Must,
        "an unknown second magic number is refused",
        NEWSTYLE,
        (FULL, second_magic),
        refuses,
    ),
    rule(
        "C-043",
        Own,
        "an end within the greeting is an error",
        NEWSTYLE,
        (FULL, short_greeting),
        refuses,
    ),
    rule(
        "C-013",
        Should,
        "unknown handshake flags are ignored",
        NEWSTYLE,
        (FULL, handshake_flags),
        should_tolerate,
    ),
    rule(
        "C-133",
        Should,
        "NBD_REP_ERR_UNSUP to all that is optional",
        TYPES,
        (FULL, unsupported),
        should_tolerate,
    ),
    rule(
        "C-030",
        Own,
        "an unknown error to all that is optional",
        REPLIES,
        (FULL, unknown_error),
        should_tolerate,
    ),
    rule(
        "C-031",
        Must,
        "errors with a message are read whole",
        REPLIES,
        (FULL, message),
        tolerates,
    ),
    rule(
        "C-075",
        Should,
        "NBD_OPT_GO is unknown: NBD_OPT_EXPORT_NAME",
        TYPES,
        (FULL, no_go),
        should_tolerate,
    ),
    rule(
        "C-082",
        Must,
        "unknown kinds of information are ignored",
        TYPES,
        (FULL, unknown_info),
        tolerates,
    ),
    rule(
        "C-083",
        Must,
        "information comes that was not asked for",
        TYPES,
        (FULL, more_infos),
        tolerates,
    ),
    rule(
        "C-084",
        Must,
        "NBD_INFO_EXPORT comes last",
        REPLIES,
        (FULL, last_info),
        tolerates,
    ),
    rule(
        "C-109",
        Should,
        "unknown transmission flags are ignored",
        "Transmission flags",
        (FULL, flags),
        should_tolerate,
    ),
    rule(
        "C-024",
        Must,
        "an option reply with a wrong magic number is refused",
        FIXED,
        (FULL, reply_magic),
        refuses,
    ),
    rule(
        "C-025",
        Must,
        "a reply to another option is refused",
        FIXED,
        (FULL, other_option),
        refuses,
    ),
    rule(
        "C-027",
        Must,
        "NBD_REP_ACK with data is refused",
        REPLIES,
        (FULL, ack_with_data),
        refuses,
    ),
    rule(
        "C-028",
        Must,
        "a reply that does not belong to the option is refused",
        REPLIES,
        (FULL, foreign_reply),
        refuses,
    ),
    rule(
        "C-086",
        May,
        "NBD_REP_ACK without NBD_INFO_EXPORT",
        REPLIES,
        (FULL, no_info),
        should_refuse,
    ),
    rule(
        "C-087",
        Must,
        "NBD_INFO_EXPORT of a wrong length is refused",
        REPLIES,
        (FULL, info_len),
        refuses,
    ),
    rule(
        "C-088",
        Must,
        "NBD_INFO_BLOCK_SIZE of a wrong length is refused",
        REPLIES,
        (FULL, sizes_len),
        refuses,
    ),
    rule(
        "C-089",
        Must,
        "NBD_REP_INFO without a type is refused",
        REPLIES,
        (FULL, no_type),
        refuses,
    ),
    rule(
        "C-118",
        Must,
        "a minimum block size of 3",
        "Size constraints",
        (FULL, odd_sizes),
        survives,
    ),
    rule(
        "H-010",
        Own,
        "a minimum block size of 0, and a maximum payload of 0",
        "Size constraints",
        (FULL, no_sizes),
        survives,
    ),
    rule(
        "H-011",
        Own,
        "an export of 2^64-1 bytes",
        REPLIES,
        (FULL, huge_export),
        survives,
    ),
    rule(
        "H-002",
        Own,
        "a reply of 4 GiB to NBD_OPT_GO is refused",
        REPLIES,
        (FULL, huge_reply),
        refuses,
    ),
    rule(
        "H-004",
        Own,
        "2,000 pieces of information are too many, or not",
        REPLIES,
        (FULL, many_infos),
        survives,
    ),
    rule(
        "C-097",
        Should,
        "NBD_REP_ERR_UNKNOWN to NBD_OPT_GO is an error",
        TYPES,
        (FULL, unknown_export),
        fails_then,
    ),
    rule(
        "C-034",
        Must,
        "after NBD_REP_ERR_SHUTDOWN nothing but the end is sent",
        "Termination of the session during option haggling",
        (FULL, shutdown),
        leaves,
    ),
];

fn first_magic(scene: &mut Scene) {
    if let Some(bytes) = scene.at(Event::Greeting) {
        bytes[7] ^= 1;
    }
}

fn second_magic(scene: &mut Scene) {
    if let Some(bytes) = scene.at(Event::Greeting) {
        bytes[15] ^= 1;
    }
}

fn short_greeting(scene: &mut Scene) {
    if let Some(bytes) = scene.at(Event::Greeting) {
        bytes.truncate(12);
        scene.then = Then::Close;
    }
}

fn handshake_flags(scene: &mut Scene) {
    if let Some(bytes) = scene.at(Event::Greeting) {
        bytes[16] |= 0x40;
        bytes[17] |= 0x10;
    }
}

/// Refuses every option that a client can do without.
fn refuse_optional(scene: &mut Scene, kind: u32, text: &[u8]) {
    let optional = [
        option::STRUCTURED_REPLY,
        option::LIST_META,
        option::SET_META,
        option::EXTENDED_HEADERS,
        option::STARTTLS,
    ];
    match scene.event {
        Event::Option(code, sent) if optional.contains(&code) => {
            scene.is_spoilt = true;
            scene.bytes.clear();
            if sent == rep::ACK || sent >> 31 == 1 {
                scene.bytes = make_option_reply(code, kind, text);
            }
        }
        _ => {}
    }
}

fn unsupported(scene: &mut Scene) {
    refuse_optional(scene, rep::ERR_UNSUP, &[]);
}

fn unknown_error(scene: &mut Scene) {
    refuse_optional(scene, 0x8000_4e42, &[]);
}

fn message(scene: &mut Scene) {
    refuse_optional(
        scene,
        rep::ERR_UNSUP,
        "not here \u{1b}[31m, not now".as_bytes(),
    );
}

/// Replaces the reply to NBD_OPT_GO.
fn answer_go(scene: &mut Scene, bytes: &[u8]) {
    if scene.event == Event::Option(option::GO, rep::INFO) {
        scene.bytes.clear();
    } else if let Some(place) = scene.go(rep::ACK) {
        *place = bytes.to_vec();
    }
}

fn no_go(scene: &mut Scene) {
    if let Event::Option(option::INFO, sent) = scene.event {
        scene.bytes.clear();
        if sent == rep::ACK {
            scene.bytes = make_option_reply(option::INFO, rep::ERR_UNSUP, &[]);
        }
    }
    answer_go(scene, &make_option_reply(option::GO, rep::ERR_UNSUP, &[]));
}

fn unknown_export(scene: &mut Scene) {
    answer_go(
        scene,
        &make_option_reply(option::GO, rep::ERR_UNKNOWN, b"no such export"),
    );
}

fn shutdown(scene: &mut Scene) {
    answer_go(
        scene,
        &make_option_reply(option::GO, rep::ERR_SHUTDOWN, &[]),
    );
    if scene.is_spoilt {
        scene.then = Then::LastWords;
    }
}

fn unknown_info(scene: &mut Scene) {
    if let Some(bytes) = scene.go(rep::INFO) {
        let mut more = make_go_info(&[0x7e, 0x42, 1, 2, 3]);
        more.extend(make_go_info(&[0xfe, 0x42]));
        more.extend(&*bytes);
        *bytes = more;
    }
}

fn more_infos(scene: &mut Scene) {
    if let Some(bytes) = scene.go(rep::ACK) {
        let name = [&kind::NAME.to_be_bytes()[..], b"disk"].concat();
        let text = [&kind::DESCRIPTION.to_be_bytes()[..], b"a disk"].concat();
        let mut more = make_go_info(&name);
        more.extend(make_go_info(&text));
        more.extend(&*bytes);
        *bytes = more;
    }
}

fn last_info(scene: &mut Scene) {
    let flags = match scene.style {
        Style::Simple => FULL.flags & !export::DF,
        _ => FULL.flags,
    };
    let is_export = scene.bytes.get(20..22) == Some(&kind::EXPORT.to_be_bytes());
    if is_export && let Some(bytes) = scene.go(rep::INFO) {
        bytes.clear();
    } else if let Some(bytes) = scene.go(rep::ACK) {
        *bytes = [go_export(flags), bytes.clone()].concat();
    }
}

fn flags(scene: &mut Scene) {
    if let Some(bytes) = scene.go(rep::INFO)
        && bytes.get(20..22) == Some(&kind::EXPORT.to_be_bytes())
    {
        bytes[30] |= 0xe0;
    }
}

fn reply_magic(scene: &mut Scene) {
    if let Some(bytes) = scene.go(rep::INFO) {
        bytes[6] ^= 1;
    }
}

fn other_option(scene: &mut Scene) {
    if let Some(bytes) = scene.go(rep::INFO) {
        bytes[11] = 3;
    }
}

fn ack_with_data(scene: &mut Scene) {
    if let Some(bytes) = scene.go(rep::ACK) {
        *bytes = make_option_reply(option::GO, rep::ACK, b"data");
    }
}

fn foreign_reply(scene: &mut Scene) {
    if let Some(bytes) = scene.go(rep::ACK) {
        let mut foreign = make_option_reply(option::GO, rep::SERVER, &[0, 0, 0, 0]);
        foreign.extend(&*bytes);
        *bytes = foreign;
    }
}

fn no_info(scene: &mut Scene) {
    answer_go(scene, &make_option_reply(option::GO, rep::ACK, &[]));
}

/// Replaces one kind of information.
fn replace_info(scene: &mut Scene, kind: u16, data: &[u8]) {
    let is_this = scene.bytes.get(20..22) == Some(&kind.to_be_bytes());
    if is_this && let Some(bytes) = scene.go(rep::INFO) {
        *bytes = make_go_info(data);
    }
}

fn info_len(scene: &mut Scene) {
    let mut data = export_info(SIZE, FULL.flags);
    data.push(0);
    replace_info(scene, kind::EXPORT, &data);
}

fn sizes_len(scene: &mut Scene) {
    let mut data = size_info(FULL.sizes);
    data.pop();
    replace_info(scene, kind::BLOCK_SIZE, &data);
}

fn no_type(scene: &mut Scene) {
    if let Some(bytes) = scene.go(rep::ACK) {
        let mut more = make_go_info(&[0]);
        more.extend(&*bytes);
        *bytes = more;
    }
}

fn odd_sizes(scene: &mut Scene) {
    replace_info(scene, kind::BLOCK_SIZE, &size_info([3, 4096, 1 << 25]));
}

fn no_sizes(scene: &mut Scene) {
    replace_info(scene, kind::BLOCK_SIZE, &size_info([0, 0, 0]));
}

fn huge_export(scene: &mut Scene) {
    replace_info(
        scene,
        kind::EXPORT,
        &export_info(u64::MAX, FULL.flags & !export::DF),
    );
}

fn huge_reply(scene: &mut Scene) {
    if let Some(bytes) = scene.go(rep::INFO) {
        bytes[16..20].fill(0xff);
    }
}

fn many_infos(scene: &mut Scene) {
    if let Some(bytes) = scene.go(rep::ACK) {
        let mut more = make_go_info(&[0x7e, 0x42]).repeat(2000);
        more.extend(&*bytes);
        *bytes = more;
    }
}
