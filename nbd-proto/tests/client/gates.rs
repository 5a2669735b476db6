//! Requests that are refused before a byte of them is sent.

use crate::common::{
    reply::{Answer, errno_of, only},
    session::{ALL_FLAGS as ALL, Entry, Session},
    wire::Delivery,
};
use nbd_proto::{
    Command,
    Command::*,
    CommandFlags, HeaderStyle, Misuse,
    client::{Limits, Transmission},
};

const NONE: CommandFlags = CommandFlags::NONE;

/// Asks for a command at a range, with a payload of zeroes if it needs one.
fn ask(
    session: &mut Session,
    command: Command,
    offset: u64,
    len: u64,
    flags: CommandFlags,
) -> Result<Vec<u8>, Misuse> {
    let sent = match command {
        Read => session.try_send(|t| t.read(offset, len, flags)),
        Write => {
            let payload = vec![0; usize::try_from(len).expect("tests are short")];
            session.try_send(|t| t.write(offset, &payload[..], flags))
        }
        Flush => session.try_send(Transmission::flush),
        Trim => session.try_send(|t| t.trim(offset, len, flags)),
        Cache => session.try_send(|t| t.cache(offset, len)),
        WriteZeroes => session.try_send(|t| t.write_zeroes(offset, len, flags)),
        BlockStatus => session.try_send(|t| t.block_status(offset, len, flags)),
        _ => panic!("{command} is not asked for"),
    };
    sent.map(|(_, bytes)| bytes)
}

/// Asks once on a new connection.
fn asked(
    entry: &Entry,
    command: Command,
    offset: u64,
    len: u64,
    flags: CommandFlags,
) -> Result<Vec<u8>, Misuse> {
    entry.always(|session| ask(session, command, offset, len, flags))
}

const RANGED: [Command; 6] = [Read, Write, Trim, Cache, WriteZeroes, BlockStatus];

fn complete(entry: Entry) -> Entry {
    if entry.mode == HeaderStyle::Simple {
        return entry;
    }
    entry.context(1, "base:allocation")
}

#[test]
fn a_command_needs_the_flag_that_offers_it() {
    // C-045, C-135, C-170, C-177, C-178, C-180, C-181, C-182
    for entry in Entry::every_mode() {
        for (command, bit) in [(Flush, 2), (Trim, 5), (WriteZeroes, 6), (Cache, 10)] {
            let without = entry.clone().flags(ALL & !(1 << bit));
            let refused = asked(&without, command, 0, 512, NONE);
            assert_eq!(refused, Err(Misuse::NotOffered { command }));
            let with = entry.clone().flags(1 | 1 << bit);
            assert!(asked(&with, command, 0, 512, NONE).is_ok());
        }
        assert!(asked(&entry.clone().flags(1), Read, 0, 512, NONE).is_ok());
        assert!(asked(&entry.clone().flags(1), Write, 0, 512, NONE).is_ok());
        let refused = asked(&entry, BlockStatus, 0, 512, NONE);
        assert_eq!(refused, Err(Misuse::NoContext));
    }
}

#[test]
fn a_read_only_export_is_not_written_to() {
    // C-171
    for entry in Entry::every_mode() {
        for flags in [0x0043, ALL | 2, 3] {
            let entry = entry.clone().flags(flags);
            for command in [Write, Trim, WriteZeroes] {
                let refused = asked(&entry, command, 0, 512, NONE);
                assert_eq!(refused, Err(Misuse::ReadOnly { command }));
            }
            assert!(asked(&entry, Read, 0, 512, NONE).is_ok());
        }
    }
}

#[test]
fn each_command_has_its_own_flags_and_no_others() {
    // C-169, C-172, C-173, C-174, C-175, C-176
    let (fua, no_hole, df, one, fast) = (0x01, 0x02, 0x04, 0x08, 0x10);
    for (offered, with_fua, with_df, with_fast) in [
        (ALL, true, true, true),
        (ALL & !0x0008, false, true, true),
        (ALL & !0x0080, true, false, true),
        (ALL & !0x0800, true, true, false),
        (0x0061, false, false, false),
    ] {
        let may = |bit: u16, offered| if offered { bit } else { 0 };
        for (command, legal) in [
            (Read, may(df, with_df)),
            (Write, may(fua, with_fua)),
            (Trim, may(fua, with_fua)),
            (
                WriteZeroes,
                no_hole | may(fua, with_fua) | may(fast, with_fast),
            ),
            (BlockStatus, one),
        ] {
            let entry = complete(Entry::structured().flags(offered));
            for bit in (0..16).map(|n| 1 << n) {
                let flags = CommandFlags::from_bits(bit);
                let sent = asked(&entry, command, 0, 512, flags);
                if legal & bit == 0 {
                    assert_eq!(sent, Err(Misuse::Flags { command, flags }));
                } else {
                    assert_eq!(sent.unwrap()[4..6], bit.to_be_bytes());
                }
            }
        }
    }
    // NO_HOLE needs no TRIM.
    let zeroes = Entry::simple().flags(0x0041);
    let sent = asked(&zeroes, WriteZeroes, 0, 512, CommandFlags::NO_HOLE).unwrap();
    assert_eq!(sent[4..6], [0, 2]);
    // DF needs chunks.
    let refused = asked(&Entry::simple(), Read, 0, 512, CommandFlags::DF);
    assert!(matches!(refused, Err(Misuse::Flags { command: Read, .. })));
}

#[test]
fn a_range_has_a_length_and_lies_inside_the_export() {
    // C-123, C-183
    for entry in Entry::every_mode() {
        let entry = complete(entry.size(1000));
        let commands = RANGED.into_iter();
        for command in commands.filter(|c| *c != BlockStatus || entry.mode != HeaderStyle::Simple) {
            for offset in [0, 1000, 2000] {
                let refused = asked(&entry, command, offset, 0, NONE);
                assert_eq!(refused, Err(Misuse::Empty { command }));
            }
            assert!(asked(&entry, command, 999, 1, NONE).is_ok());
            for (offset, len) in [(0, 1001), (1000, 1), (999, 2), (u64::MAX, 2)] {
                let size = 1000;
                let refused = asked(&entry, command, offset, len, NONE);
                let outside = Misuse::OutOfBounds {
                    command,
                    offset,
                    len,
                    size,
                };
                assert_eq!(refused, Err(outside));
            }
        }
    }
}

#[test]
fn a_range_is_made_of_whole_blocks() {
    // C-116, C-121
    for entry in Entry::every_mode() {
        let entry = complete(entry.size(1_000_000).block_sizes(512, 4096, 65536));
        let commands = RANGED.into_iter();
        for command in commands.filter(|c| *c != BlockStatus || entry.mode != HeaderStyle::Simple) {
            for (offset, len) in [(1, 512), (512, 511), (0, 999_900)] {
                let refused = asked(&entry, command, offset, len, NONE);
                let minimum = 512;
                let unaligned = Misuse::Unaligned {
                    command,
                    offset,
                    len,
                    minimum,
                };
                assert_eq!(refused, Err(unaligned));
            }
            assert!(asked(&entry, command, 999_424, 512, NONE).is_ok());
        }
    }
    let refused = asked(
        &Entry::simple().block_sizes(4096, 4096, 65536),
        Read,
        0,
        512,
        NONE,
    );
    assert!(matches!(
        refused,
        Err(Misuse::Unaligned { minimum: 4096, .. })
    ));
}

#[test]
fn an_incomplete_block_at_the_end_of_an_export_is_out_of_reach() {
    // C-129
    for entry in Entry::every_mode() {
        let entry = complete(entry.size(1_000_000).block_sizes(512, 4096, 65536));
        let commands = RANGED.into_iter();
        for command in commands.filter(|c| *c != BlockStatus || entry.mode != HeaderStyle::Simple) {
            for (offset, len) in [(999_936, 64), (999_424, 576), (999_936, 1), (0, 1_000_000)] {
                let refused = asked(&entry, command, offset, len, NONE);
                let unreachable = Misuse::Unreachable {
                    command,
                    offset,
                    len,
                    reachable: 999_936,
                    size: 1_000_000,
                    minimum: 512,
                };
                assert_eq!(refused, Err(unreachable));
            }
            let refused = asked(&entry, command, 999_936, 512, NONE);
            assert!(matches!(refused, Err(Misuse::OutOfBounds { .. })));
            assert!(asked(&entry, command, 999_424, 512, NONE).is_ok());
        }
    }
    let refused = asked(
        &Entry::simple().size(1000).block_sizes(512, 512, 65536),
        Read,
        512,
        488,
        NONE,
    );
    assert_eq!(
        refused.unwrap_err().to_string(),
        "NBD_CMD_READ was not sent: 488 bytes at 512 reach into an incomplete block, for only 512 of \
         the export's 1000 bytes are in whole blocks of 512"
    );
}

#[test]
fn a_payload_has_at_most_the_advertised_length() {
    // C-116, C-124
    for entry in Entry::every_mode() {
        let chunks = entry.mode != HeaderStyle::Simple;
        let entry = entry.block_sizes(1, 512, 65536);
        assert!(asked(&entry, Write, 0, 65536, NONE).is_ok());
        assert!(asked(&entry, Read, 0, 65536, NONE).is_ok());
        let refused = |command| Misuse::TooLong {
            command,
            len: 65537,
            max: 65536,
        };
        assert_eq!(asked(&entry, Write, 0, 65537, NONE), Err(refused(Write)));
        let read = asked(&entry, Read, 0, 65537, NONE);
        assert_eq!(read.err(), (!chunks).then_some(refused(Read)));
    }
}

#[test]
fn limits_hold_even_if_the_server_allows_more() {
    // C-125, C-130, C-144, B-011
    let max = 32 << 20;
    for entry in Entry::every_mode() {
        let entry = entry.size(1 << 40);
        for entry in [entry.clone(), entry.block_sizes(1, 512, u32::MAX)] {
            assert!(asked(&entry, Read, 0, max, NONE).is_ok());
            for len in [max + 1, 1 << 32] {
                let command = Read;
                let refused = asked(&entry, command, 0, len, NONE);
                assert_eq!(refused, Err(Misuse::TooLong { command, len, max }));
            }
            let mut session = entry.enter(Delivery::Whole);
            assert!(ask(&mut session, Write, 0, max, NONE).is_ok());
            let refused = ask(&mut session, Write, 0, max + 1, NONE);
            let (command, len) = (Write, max + 1);
            assert_eq!(refused, Err(Misuse::TooLong { command, len, max }));
        }
    }
    // 64 MiB can be chosen as a limit, and a server can then be asked for as much.
    let limits = Limits {
        payload: 64 << 20,
        ..Limits::default()
    };
    let entry = Entry::structured().size(1 << 40).limits(limits);
    assert!(asked(&entry, Read, 0, 64 << 20, NONE).is_ok());
}

#[test]
fn a_command_without_payload_may_be_as_long_as_its_length_field_can_say() {
    // C-126
    for entry in Entry::every_mode() {
        let extended = entry.mode == HeaderStyle::Extended;
        let entry = complete(entry.size(1 << 40).block_sizes(1, 512, 65536));
        let commands = [Trim, Cache, WriteZeroes, BlockStatus].into_iter();
        for command in commands.filter(|c| *c != BlockStatus || entry.mode != HeaderStyle::Simple) {
            assert!(asked(&entry, command, 0, 1 << 30, NONE).is_ok());
            assert!(asked(&entry, command, 0, u64::from(u32::MAX), NONE).is_ok());
            let too_long = asked(&entry, command, 0, 1 << 32, NONE);
            assert_eq!(too_long.is_ok(), extended, "{too_long:?}");
        }
    }
}

#[test]
fn a_filter_names_selected_contexts_once_each() {
    // C-112, C-194
    let entry = Entry::extended()
        .context(4, "base:allocation")
        .context(9, "x-a:b");
    let of = |entry: &Entry, ids: &[u32]| {
        entry.always(|session| {
            session
                .try_send(|t| t.block_status_of(ids, 0, 512, NONE))
                .map(drop)
        })
    };
    for legal in [&[4][..], &[9], &[9, 4]] {
        assert_eq!(of(&entry, legal), Ok(()));
    }
    for illegal in [&[][..], &[5], &[4, 4], &[4, 5], &[9, 4, 9]] {
        assert_eq!(of(&entry, illegal), Err(Misuse::Filter));
    }
    let unoffered = Misuse::Flags {
        command: BlockStatus,
        flags: CommandFlags::PAYLOAD_LEN,
    };
    assert_eq!(of(&entry.flags(ALL & !0x1000), &[4]), Err(unoffered));
    let structured = Entry::structured().context(4, "base:allocation");
    assert_eq!(of(&structured, &[4]), Err(unoffered));
}

#[test]
fn as_many_requests_are_in_flight_as_the_limits_allow() {
    // B-012
    Entry::simple().always(|session| {
        let all: Vec<_> = (0..64).map(|_| session.send(Transmission::flush)).collect();
        assert!(!session.transmission.has_room());
        let refused = session.try_send(Transmission::flush);
        assert_eq!(refused, Err(Misuse::InFlight { limit: 64 }));
        assert!(all.iter().all(|to| to.cookie & 0xffff_ffff < 64));
        session.says(all[63].simple(0));
        assert_eq!(session.replies(), Ok(vec![(63, Answer::Done)]));
        assert!(session.transmission.has_room());
        assert!(session.try_send(Transmission::flush).is_ok());
    });
    // A limit that would allow no request allows one.
    let limits = Limits {
        in_flight: 0,
        ..Limits::default()
    };
    Entry::simple().limits(limits).always(|session| {
        assert!(session.transmission.has_room());
        let only = session.send(Transmission::flush);
        let refused = session.try_send(Transmission::flush);
        assert_eq!(refused, Err(Misuse::InFlight { limit: 1 }));
        session.says(only.simple(0)).replies().expect("a reply");
        assert!(session.transmission.has_room());
    });
}

#[test]
fn after_disconnecting_nothing_is_sent_and_requests_in_flight_are_still_answered() {
    // C-186
    for entry in Entry::every_mode() {
        entry.always(|session| {
            let to = session.send(Transmission::flush);
            assert!(session.transmission.disconnect().is_ok());
            assert!(!session.transmission.may_end(), "one reply is to come");
            let refused = session.try_send(|t| t.read(0, 512, NONE));
            assert_eq!(refused, Err(Misuse::Disconnecting));
            let twice = session.transmission.disconnect().map(drop);
            assert_eq!(twice, Err(Misuse::Disconnecting));
            session.says(to.ok());
            assert_eq!(session.replies(), only(Answer::Done));
            assert!(session.transmission.may_end());
        });
    }
}

#[test]
fn a_server_that_shuts_down_is_asked_for_nothing_more_than_to_end() {
    // C-188, H-038
    for entry in Entry::every_mode() {
        entry.always(|session| {
            let first = session.send(Transmission::flush);
            let second = session.send(Transmission::flush);
            assert!(!session.transmission.server_shuts_down());
            session.says(first.fail(108));
            assert_eq!(errno_of(&session.replies()), 108);
            assert!(session.transmission.server_shuts_down());
            assert!(session.try_send(Transmission::flush).is_err());
            session.says(second.fail(108));
            assert_eq!(session.replies().map(|answers| answers.len()), Ok(1));
            assert!(session.transmission.disconnect().is_ok());
            assert!(session.transmission.disconnect().is_err(), "once is enough");
            assert!(session.transmission.may_end());
        });
    }
}
