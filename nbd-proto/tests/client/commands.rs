//! The bytes of commands on the wire.

use crate::common::{bytes::*, reply::Replier, session::Entry};
use ::bytes::Buf;
use nbd_proto::{CommandFlags, HeaderStyle, Misuse, client::Transmission};

/// Every command of an export with two contexts: its bytes with cookie 0, and the oracle's.
fn every_command(entry: &Entry) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mode = entry.mode;
    let expect = |flags: u16, command: u16, offset: u64, len: u64| match mode {
        HeaderStyle::Extended => xreq(flags, command, 0, offset, len),
        _ => req(
            flags,
            command,
            0,
            offset,
            u32::try_from(len).expect("tests are short"),
        ),
    };
    let payload_len = if mode == HeaderStyle::Extended {
        0x20
    } else {
        0
    };
    let no_flags = CommandFlags::NONE;
    let fua = CommandFlags::FUA;
    entry.always(|session| {
        let mut commands = Vec::new();
        let mut take = |sent: Result<(u64, Vec<u8>), Misuse>, expected: Vec<u8>| {
            let (cookie, mut bytes) = sent.expect("a command that makes sense");
            assert_eq!(bytes[8..16], cookie.to_be_bytes());
            bytes[8..16].fill(0);
            commands.push((bytes, expected));
        };
        let payload = content(4096, 1024);
        let all_zero_flags = fua | CommandFlags::NO_HOLE | CommandFlags::FAST_ZERO;
        take(
            session.try_send(|t| t.read(512, 1024, no_flags)),
            expect(0, 0, 512, 1024),
        );
        take(
            session.try_send(|t| t.write(4096, &payload[..], no_flags)),
            [expect(payload_len, 1, 4096, 1024), payload.clone()].concat(),
        );
        take(
            session.try_send(|t| t.write(4096, &payload[..], fua)),
            [expect(payload_len | 1, 1, 4096, 1024), payload.clone()].concat(),
        );
        take(session.try_send(Transmission::flush), expect(0, 3, 0, 0));
        take(
            session.try_send(|t| t.trim(512, 512, fua)),
            expect(1, 4, 512, 512),
        );
        take(
            session.try_send(|t| t.cache(0, 1 << 20)),
            expect(0, 5, 0, 1 << 20),
        );
        take(
            session.try_send(|t| t.write_zeroes(0, 512, all_zero_flags)),
            expect(0x13, 6, 0, 512),
        );
        if mode != HeaderStyle::Simple {
            take(
                session.try_send(|t| t.read(0, 512, CommandFlags::DF)),
                expect(4, 0, 0, 512),
            );
            take(
                session.try_send(|t| t.block_status(0, 512, no_flags)),
                expect(0, 7, 0, 512),
            );
            take(
                session.try_send(|t| t.block_status(0, 512, CommandFlags::REQ_ONE)),
                expect(8, 7, 0, 512),
            );
        }
        if mode == HeaderStyle::Extended {
            let filter = [&512_u64.to_be_bytes()[..], &[0, 0, 0, 9]].concat();
            take(
                session.try_send(|t| t.block_status_of(&[9], 1024, 512, no_flags)),
                [expect(0x20, 7, 1024, 12), filter].concat(),
            );
            let filter = [&512_u64.to_be_bytes()[..], &[0, 0, 0, 9, 0, 0, 0, 4]].concat();
            take(
                session.try_send(|t| t.block_status_of(&[9, 4], 0, 512, CommandFlags::REQ_ONE)),
                [expect(0x28, 7, 0, 16), filter].concat(),
            );
        }
        take(
            session
                .transmission
                .disconnect()
                .map(|mut frame| (0, frame.copy_to_bytes(frame.remaining()).to_vec())),
            expect(0, 2, 0, 0),
        );
        commands
    })
}

fn with_contexts(entry: Entry) -> Entry {
    if entry.mode == HeaderStyle::Simple {
        return entry;
    }
    entry
        .context(4, "base:allocation")
        .context(9, "qemu:allocation-depth")
}

#[test]
fn each_command_has_its_header_and_its_payload() {
    // C-044, C-140, C-145, C-147, C-167, C-177, C-186, C-194
    for entry in Entry::every_mode() {
        for (sent, expected) in every_command(&with_contexts(entry)) {
            assert_eq!(sent, expected);
        }
    }
}

#[test]
fn nothing_is_sent_that_the_registry_does_not_know() {
    // C-047, C-146, C-195
    for entry in Entry::every_mode() {
        let compact = entry.mode != HeaderStyle::Extended;
        for (sent, _) in every_command(&with_contexts(entry.flags(0x1fed))) {
            let flags = u16::from_be_bytes([sent[4], sent[5]]);
            let command = u16::from_be_bytes([sent[6], sent[7]]);
            assert!(command <= 7, "no resizing, and nothing private");
            assert!(flags & !0x3f == 0);
            assert!(
                !compact || flags & 0x20 == 0,
                "no PAYLOAD_LEN in a compact request"
            );
        }
    }
}

#[test]
fn a_frame_of_a_write_lends_the_payload_that_it_was_given() {
    // C-167
    Entry::simple().always(|session| {
        let payload = content(0, 4096);
        let (_, frame) = session
            .transmission
            .write(0, &payload[..], CommandFlags::NONE)
            .unwrap();
        assert_eq!(frame.header().len(), 28);
        assert_eq!(*frame.payload(), &payload[..]);
        assert!(
            core::ptr::eq(*frame.payload(), &payload[..]),
            "it is not copied"
        );
    });
}

#[test]
fn no_two_requests_in_flight_have_one_cookie() {
    // C-168, C-204
    let cookies = Entry::simple().always(|session| {
        let mut in_flight: Vec<Replier> = Vec::new();
        let mut seen = std::collections::BTreeSet::new();
        for round in 0..500 {
            let to = session.send(Transmission::flush);
            assert!(seen.insert(to.cookie), "a cookie comes twice");
            in_flight.push(to);
            if in_flight.len() > 7 {
                let to = in_flight.swap_remove(round % 8);
                session.says(to.simple(0));
                assert_eq!(session.replies().map(|answers| answers.len()), Ok(1));
            }
        }
        seen.len()
    });
    assert_eq!(cookies, 500);
}
