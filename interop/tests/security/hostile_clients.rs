//! The rules about hostile clients of `docs/conformance.md`, over real sockets.

use crate::{
    bounded::bounded,
    drivers::Setup,
    raw::{
        ACK, CLIENT, EXTENDED, GO, MIB, SET_META_CONTEXT, entered, extended, is_closed, is_refused,
        last_reply, memory, option, option_of, reply, request, simple, wanted,
    },
};
use nbd_io::{Memory, NamedExports};
use std::{
    io::{Read, Write},
    net::TcpStream,
    sync::Arc,
};

#[test]
fn options_without_end_are_the_end_of_a_connection() {
    // H-042, H-046, H-047, H-066
    bounded(64, || {
        Setup::new(memory()).attack(|host| {
            for data in [
                option(3, &[]),
                option(6, &wanted(b"")),
                option(0x7777, &[1; 100]),
                option(9, b"\0\0\0\0\0\0\0\0"),
            ] {
                let mut stream = host.greeted();
                stream.write_all(&CLIENT).unwrap();
                let mut options = 0;
                // The replies are not read, or both would wait for each other.
                let mut reader = stream.try_clone().unwrap();
                let reading = std::thread::spawn(move || is_closed(&mut reader));
                while stream.write_all(&data).is_ok() {
                    options += 1;
                    assert!(options < 1 << 20, "it answers and answers");
                }
                reading.join().unwrap();
            }
            // Client flags that do not exist.
            let mut stream = host.greeted();
            stream.write_all(&[0xff; 4]).unwrap();
            is_closed(&mut stream);
            // More queries than there are bytes, and as many infos as the field can count.
            let mut stream = host.greeted();
            stream.write_all(&CLIENT).unwrap();
            let queries = [&[0; 4][..], &[0xff; 4], &[0, 0, 0, 1, b'a']].concat();
            let infos = [&[0, 0, 0, 0, 0xff, 0xff][..], &[0; 2 * 65_535]].concat();
            for (kind, data) in [(8, &[][..]), (9, &queries), (10, &queries), (GO, &infos)] {
                stream.write_all(&option(kind, data)).unwrap();
                let code = last_reply(&mut stream);
                assert!(kind == 8 || code >> 31 == 1, "{kind}: {code:x}");
            }
            stream
                .write_all(&option_of(8, 1 << 21, &[0; 1 << 16]))
                .unwrap();
            is_closed(&mut stream);
        });
    });
}

#[test]
fn requests_that_make_no_sense_are_refused_one_by_one() {
    // H-055, H-058, H-061, H-062, H-065
    bounded(96, || {
        Setup::new(memory()).attack(|host| refused_one_by_one(&mut entered(host)));
    });
}

fn refused_one_by_one(stream: &mut TcpStream) {
    for (command, offset, len) in [
        (0, u64::MAX, 1),
        (0, u64::MAX - 511, 512),
        (0, 64 * MIB, 512),
        (4, u64::MAX, 512),
        (6, 64 * MIB - 1, u32::MAX),
        (7, 0, 512),
        (8, 0, 512),
        (0xffff, u64::MAX, u32::MAX),
    ] {
        stream.write_all(&request(command, 9, offset, len)).unwrap();
        assert_ne!(simple(stream, 0).0, 0, "{command}");
    }
    // Flags that no command has, with every command but NBD_CMD_DISC.
    for command in [0, 1, 3, 4, 5, 6, 7, 8, 0xffff] {
        let flags = (257..=u16::MAX).step_by(257);
        for flags in flags.clone() {
            let mut request = request(command, 9, 0, 512);
            request[4..6].copy_from_slice(&flags.to_be_bytes());
            if command == 1 {
                request.resize(28 + 512, 7);
            }
            stream.write_all(&request).unwrap();
        }
        for flags in flags {
            assert_ne!(simple(stream, 0).0, 0, "{command}: {flags}");
        }
    }
    // The same cookie many times, and many flushes.
    let reads = request(0, 5, 512, 512).repeat(40);
    let flushes = request(3, 6, 0, 0).repeat(40);
    stream.write_all(&[reads, flushes].concat()).unwrap();
    for number in 0..80 {
        let len = if number < 40 { 512 } else { 0 };
        assert_eq!(simple(stream, len).0, 0);
    }
    // Nothing behind NBD_CMD_DISC is looked at.
    let mut last = request(2, 7, 0, 0);
    last.extend([0xee; 4096]);
    stream.write_all(&last).unwrap();
    is_closed(stream);
}

#[test]
fn lengths_of_64_bits_are_refused_and_announced_payload_is_skipped() {
    // H-057, H-059, H-060
    bounded(128, || {
        Setup::new(memory()).attack(|host| {
            let mut stream = host.greeted();
            stream.write_all(&CLIENT).unwrap();
            let allocation = b"\0\0\0\0\0\0\0\x01\0\0\0\x0fbase:allocation";
            for step in [
                option(EXTENDED, &[]),
                option(SET_META_CONTEXT, allocation),
                option(GO, &wanted(b"")),
            ] {
                stream.write_all(&step).unwrap();
                assert_eq!(last_reply(&mut stream), ACK);
            }
            for command in [0, 4, 5, 6, 7] {
                for (offset, len) in [(0, 1 << 63), (1 << 63, 1 << 63), (1, u64::MAX)] {
                    let request = extended(0, command, 1, offset, len);
                    stream.write_all(&request).unwrap();
                    assert!(is_refused(&mut stream), "{command}");
                }
            }
            // NBD_CMD_FLAG_PAYLOAD_LEN, where it means nothing.
            let payload = vec![7; 32 << 20];
            for command in [0, 3] {
                let request = extended(0x20, command, 1, 0, 32 << 20);
                stream.write_all(&request).unwrap();
                stream.write_all(&payload).unwrap();
                assert!(is_refused(&mut stream), "{command}");
            }
            // A filter of more contexts than there are, and one of 2^28.
            let filter = extended(0x20, 7, 1, 0, 8 + (4 << 10));
            stream.write_all(&filter).unwrap();
            stream.write_all(&[7; 8 + (4 << 10)]).unwrap();
            assert!(is_refused(&mut stream));
            let filter = extended(0x20, 7, 1, 0, 8 + (4 << 28));
            stream.write_all(&filter).unwrap();
            is_closed(&mut stream);
        });
    });
}

#[test]
fn a_forbidden_export_is_refused_like_an_unknown_one() {
    // H-051
    bounded(64, || {
        let mut setup = Setup::new(memory());
        setup.only = Some([127, 0, 0, 11].into());
        setup.attack(|host| {
            let mut stream = host.greeted();
            stream.write_all(&CLIENT).unwrap();
            let mut refused = |name: &[u8]| {
                stream.write_all(&option(GO, &wanted(name))).unwrap();
                reply(&mut stream)
            };
            let (forbidden, unknown) = (refused(b""), refused(b"x"));
            assert_eq!(forbidden.0, unknown.0);
            let text = |text: Vec<u8>| String::from_utf8(text).unwrap().replace("\"x\"", "\"\"");
            assert_eq!(text(forbidden.1), text(unknown.1));
        });
    });
}

#[test]
fn payload_that_is_refused_is_skipped_and_headers_of_the_other_kind_are_the_end() {
    // H-064, H-067
    bounded(96, || {
        let disk = Memory::new(MIB).read_only();
        Setup::new(NamedExports::single(Arc::new(disk))).attack(|host| {
            let mut stream = entered(host);
            let mut write = request(1, 1, 0, 1 << 20);
            write.resize(28 + (1 << 20), 7);
            stream.write_all(&write).unwrap();
            assert_eq!(simple(&mut stream, 0).0, 1);
            // A compact header, where extended ones were agreed on.
            let mut stream = host.greeted();
            stream
                .write_all(&[&CLIENT[..], &option(11, &[])].concat())
                .unwrap();
            assert_eq!(last_reply(&mut stream), 1);
            stream.write_all(&option(GO, &wanted(b""))).unwrap();
            assert_eq!(last_reply(&mut stream), 1);
            stream.write_all(&request(0, 1, 0, 512)).unwrap();
            is_closed(&mut stream);
            // And the other way round.
            let mut stream = entered(host);
            stream.write_all(&0x21e4_1c71_u32.to_be_bytes()).unwrap();
            let mut byte = [0];
            assert!(!matches!(stream.read(&mut byte), Ok(1..)));
        });
    });
}
