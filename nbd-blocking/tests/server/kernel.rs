//! Traffic as the client in the Linux kernel sends it, in bytes.

use crate::support::{Running, pattern, soon};
use crate::witness::{flagged, request};
use nbd_blocking::{Server, exports::Failure};
use nbd_io::{Export, Memory};
use std::{
    collections::HashMap,
    io::{Read, Write},
    os::unix::net::UnixStream,
    sync::Arc,
    thread,
};

const READ: u8 = 0;
const WRITE: u8 = 1;
const DISC: u8 = 2;
const FLUSH: u8 = 3;
const TRIM: u8 = 4;
const WRITE_ZEROES: u8 = 6;
const FUA: u16 = 1;
const NO_HOLE: u16 = 2;

/// The bytes of nbd-client for the kernel: fixed newstyle without zeroes, and `NBD_OPT_GO`.
const NEGOTIATION: &[u8] = b"\0\0\0\x03IHAVEOPT\0\0\0\x07\0\0\0\x06\0\0\0\0\0\0";

/// A connection in transmission, the size of the export and its flags.
fn enter(running: &Running) -> (UnixStream, u64, u16) {
    let mut raw = running.raw();
    let mut greeting = [0; 18];
    raw.read_exact(&mut greeting).unwrap();
    assert_eq!(greeting, *b"NBDMAGICIHAVEOPT\0\x03");
    raw.write_all(NEGOTIATION).unwrap();
    let mut info = [0; 32];
    raw.read_exact(&mut info).unwrap();
    assert_eq!(
        info[..22],
        *b"\0\x03\xe8\x89\x04\x55\x65\xa9\0\0\0\x07\0\0\0\x03\0\0\0\x0c\0\0"
    );
    let mut acknowledged = [0; 20];
    raw.read_exact(&mut acknowledged).unwrap();
    assert_eq!(
        acknowledged,
        *b"\0\x03\xe8\x89\x04\x55\x65\xa9\0\0\0\x07\0\0\0\x01\0\0\0\0"
    );
    let size = u64::from_be_bytes(info[22..30].try_into().unwrap());
    let flags = u16::from_be_bytes(info[30..].try_into().unwrap());
    (raw, size, flags)
}

/// The error and the cookie of a simple reply.
fn answer(raw: &mut UnixStream) -> (u32, u64) {
    let mut reply = [0; 16];
    raw.read_exact(&mut reply).unwrap();
    assert_eq!(reply[..4], *b"\x67\x44\x66\x98");
    let errno = u32::from_be_bytes(reply[4..8].try_into().unwrap());
    (errno, u64::from_be_bytes(reply[8..].try_into().unwrap()))
}

/// Has one request carried out, and returns the data of a read.
fn ask(raw: &mut UnixStream, header: &[u8], payload: &[u8], returns: usize) -> Vec<u8> {
    raw.write_all(header).unwrap();
    raw.write_all(payload).unwrap();
    let (errno, cookie) = answer(raw);
    assert_eq!((errno, &cookie.to_be_bytes()[..]), (0, &header[8..16]));
    let mut data = vec![0; returns];
    raw.read_exact(&mut data).unwrap();
    data
}

/// The kernel sends this and closes, without an answer.
fn leave(mut raw: UnixStream) {
    raw.write_all(&request(DISC, 0, 0, 0)).unwrap();
    assert_eq!(raw.read(&mut [0; 1]).unwrap(), 0);
}

#[test]
fn the_kernel_gets_the_size_and_flags_of_an_export() {
    // S-143, S-174
    soon(|| {
        for size in [0, 512, (1 << 63) - 1] {
            let running = Running::new(Server::single(Arc::new(Memory::new(size))));
            let (raw, announced, flags) = enter(&running);
            assert_eq!(announced, size);
            // HAS_FLAGS, SEND_FLUSH, SEND_FUA, SEND_TRIM, SEND_WRITE_ZEROES, CAN_MULTI_CONN.
            let wanted = 1 | 1 << 2 | 1 << 3 | 1 << 5 | 1 << 6 | 1 << 8;
            assert_eq!(flags & wanted, wanted, "{flags:#x}");
            assert_eq!(flags & (1 << 1), 0, "it is not read-only");
            leave(raw);
            assert_eq!(running.stop(), ["the client disconnected"]);
        }
    });
}

/// The smallest possible export.
struct Least;

impl Export for Least {
    fn size(&self) -> u64 {
        4096
    }

    fn read(&self, _: u64, buf: &mut [u8]) -> Result<(), Failure> {
        buf.fill(1);
        Ok(())
    }
}

#[test]
fn several_connections_are_promised_only_where_the_export_says_so() {
    soon(|| {
        let running = Running::new(Server::single(Arc::new(Least)));
        let (mut raw, size, flags) = enter(&running);
        assert_eq!(size, 4096);
        assert_eq!(flags & 1 << 8, 0, "CAN_MULTI_CONN");
        assert_eq!(flags & 1 << 1, 1 << 1, "READ_ONLY");
        assert_eq!(ask(&mut raw, &request(READ, 1, 0, 512), &[], 512), [1; 512]);
        leave(raw);
        running.stop();
    });
}

#[test]
fn the_last_bytes_of_the_largest_export_can_be_used() {
    // H-055
    soon(|| {
        let size: u64 = (1 << 63) - 1;
        let running = Running::new(Server::single(Arc::new(Memory::new(size))));
        let (mut raw, ..) = enter(&running);
        let last = size - 511;
        let data = pattern(511, 3);
        ask(&mut raw, &request(WRITE, 1, last, 511), &data, 0);
        assert_eq!(ask(&mut raw, &request(READ, 2, last, 511), &[], 511), data);
        let before = ask(&mut raw, &request(READ, 3, last - 512, 1023), &[], 1023);
        assert!(before[..512] == [0; 512] && before[512..] == data);
        for (offset, len) in [(last, 512), (size, 1), (u64::MAX, 1), (u64::MAX - 511, 512)] {
            raw.write_all(&request(READ, 4, offset, len)).unwrap();
            assert_eq!(answer(&mut raw), (22, 4));
            raw.write_all(&request(WRITE, 5, offset, len)).unwrap();
            raw.write_all(&vec![1; len as usize]).unwrap();
            assert_eq!(answer(&mut raw), (28, 5));
        }
        ask(&mut raw, &request(TRIM, 6, last, 511), &[], 0);
        leave(raw);
        running.stop();
    });
}

#[test]
fn acknowledged_writes_are_seen_on_all_connections() {
    // S-221, S-223
    soon(|| {
        let running = Running::new(Server::single(Arc::new(Memory::new(1 << 40))));
        let mut connections: Vec<_> = (0..4).map(|_| enter(&running).0).collect();
        for round in 0..200_u64 {
            let offset = round * 1_000_448;
            let data = pattern(1 << 12, round as u32);
            let flags = if round % 2 == 0 { FUA } else { 0 };
            let writer = round as usize % 4;
            let write = flagged(flags, WRITE, !round, offset, 1 << 12);
            ask(&mut connections[writer], &write, &data, 0);
            let flush = request(FLUSH, round, 0, 0);
            ask(&mut connections[(writer + 1) % 4], &flush, &[], 0);
            for raw in &mut connections {
                let read = request(READ, 7, offset, 1 << 12);
                assert!(ask(raw, &read, &[], 1 << 12) == data);
            }
        }
        connections.into_iter().for_each(leave);
        running.stop();
    });
}

/// A kernel's queue: up to 128 requests are sent without waiting, of which no two touch the same
/// bytes; then all replies are checked, in any order.
fn rounds(mut raw: UnixStream, base: u64, seed: u32) {
    const SLOTS: usize = 16;
    const SLOT: usize = 1280 << 10;
    let mut model = vec![0; SLOTS * SLOT];
    let mut random = seed;
    let mut next = move |below: u32| {
        random ^= random << 13;
        random ^= random >> 17;
        random ^= random << 5;
        random % below
    };
    for round in 0..24 {
        // A few large requests, or many small ones.
        let (count, largest) = if round % 3 == 0 {
            (SLOTS, SLOT)
        } else {
            (128, 64 << 10)
        };
        let stride = SLOTS * SLOT / count;
        let mut sent: HashMap<u64, Option<Vec<u8>>> = HashMap::new();
        let mut out = Vec::new();
        for place in 0..count {
            let blocks = next((largest.min(stride) / 512) as u32) as usize + 1;
            let len = blocks * 512;
            let at = place * stride;
            let offset = base + at as u64;
            // Any value will do, as the kernel's are made of a tag and a sequence.
            let cookie = u64::from(next(u32::MAX)) << 32 | place as u64;
            let old = &mut model[at..at + len];
            let header = |flags, command| flagged(flags, command, cookie, offset, len as u32);
            let mut data = None;
            match next(8) {
                0 => {
                    out.extend(header(if next(2) == 0 { 0 } else { NO_HOLE }, WRITE_ZEROES));
                    old.fill(0);
                }
                1 => out.extend(request(FLUSH, cookie, 0, 0)),
                2..5 => {
                    out.extend(header(if next(4) == 0 { FUA } else { 0 }, WRITE));
                    old.copy_from_slice(&pattern(len, next(u32::MAX)));
                    out.extend(&*old);
                }
                5 if round % 4 == 0 => {
                    // Memory reads as zeroes only in whole pages of a trimmed range.
                    out.extend(header(0, TRIM));
                    out.extend(flagged(0, WRITE_ZEROES, !cookie, offset, len as u32));
                    sent.insert(!cookie, None);
                    old.fill(0);
                }
                _ => {
                    out.extend(header(0, READ));
                    data = Some(old.to_vec());
                }
            }
            sent.insert(cookie, data);
        }
        let mut writer = raw.try_clone().unwrap();
        let sending = thread::spawn(move || writer.write_all(&out).unwrap());
        while !sent.is_empty() {
            let (errno, cookie) = answer(&mut raw);
            assert_eq!(errno, 0);
            let data = sent
                .remove(&cookie)
                .expect("the cookie is that of a request");
            if let Some(expected) = data {
                let mut data = vec![0; expected.len()];
                raw.read_exact(&mut data).unwrap();
                assert!(data == expected, "round {round}");
            }
        }
        sending.join().unwrap();
    }
    let read = request(READ, 1, base, 1 << 20);
    assert!(ask(&mut raw, &read, &[], 1 << 20) == model[..1 << 20]);
    leave(raw);
}

#[test]
fn four_queues_of_the_kernel_are_served_at_once() {
    // S-143, S-165, S-174, S-219
    soon(|| {
        let end = (1 << 63) - 1;
        let running = Running::new(Server::single(Arc::new(Memory::new(end))));
        let queues: Vec<_> = (0..4_u32)
            .map(|queue| {
                let (raw, ..) = enter(&running);
                let base = if queue == 3 {
                    end - (40 << 20)
                } else {
                    u64::from(queue) << 50
                };
                thread::spawn(move || rounds(raw, base, 99 + queue))
            })
            .collect();
        for queue in queues {
            queue.join().unwrap();
        }
        assert_eq!(running.stop(), ["the client disconnected"; 4]);
    });
}
