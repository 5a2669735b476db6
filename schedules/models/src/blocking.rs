//! One connection that threads share.

use crate::{
    link::{Call, Link, LinkLimits},
    range_guard::SharedRangeLocks,
    stream::{Stream, pair},
};
use bytes::BytesMut;
use nbd_io::client::Request;
use nbd_proto::{
    CommandFlags, Phase, Step,
    client::{Config, Greeted, Handshake, Limits, Transmission},
};
use schedules_std::thread::{self, JoinHandle};
use shuttle::rand::{Rng, thread_rng};
use std::{
    io::{self, IoSlice, IoSliceMut},
    sync::Arc,
};

const SIZE: usize = 4 * LEN;

/// Length of each thread's bytes, of which there is room for two in flight. That much is read straight
/// to its place.
const LEN: usize = 40_000;

/// The distance of changes that overlap.
const PART: usize = LEN / 3;

/// The way into an export of an oldstyle server, which is one message.
fn transmission() -> Transmission {
    let config = Config {
        limits: Limits {
            in_flight: 2,
            ..Limits::default()
        },
        ..Config::default()
    };
    let mut greeting = b"NBDMAGIC\x00\x00\x42\x02\x81\x86\x12\x53".to_vec();
    greeting.extend((SIZE as u64).to_be_bytes());
    greeting.extend([0, 0, 0, 1 | 1 << 2]);
    greeting.extend([0; 124]);
    let greeted = Handshake::new(config).feed(&greeting, &mut BytesMut::new());
    match greeted.unwrap() {
        (_, Step::Done(Greeted::Oldstyle(oldstyle))) => oldstyle.accept(),
        other => panic!("{other:?}"),
    }
}

/// A request that a server has not answered.
struct Pending {
    command: u8,
    cookie: [u8; 8],
    offset: usize,
    data: Vec<u8>,
}

/// A server that answers in any order. Writes of the same bytes are never there at once.
fn serve(stream: &Stream) -> io::Result<()> {
    let read = |n: usize| {
        let mut bytes = vec![0; n];
        let mut at = 0;
        while at < n {
            match stream.read(&mut [IoSliceMut::new(&mut bytes[at..])], true)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                n => at += n,
            }
        }
        Ok::<_, io::Error>(bytes)
    };
    let mut disk = vec![0; SIZE];
    let mut pending: Vec<Pending> = Vec::new();
    loop {
        let more = pending.is_empty() || pending.len() < 2 && thread_rng().gen_bool(0.5);
        // With nothing to read, it answers.
        let more = more && (pending.is_empty() || stream.wait(true, false, Some(now())).is_ok());
        if more {
            let header = read(28)?;
            assert_eq!(header[..4], [0x25, 0x60, 0x95, 0x13]);
            let number = |range: std::ops::Range<usize>| {
                header[range]
                    .iter()
                    .fold(0, |n, byte| n << 8 | usize::from(*byte))
            };
            let (command, offset, len) = (header[7], number(16..24), number(24..28));
            if command == 2 {
                assert!(
                    pending.is_empty(),
                    "a client disconnects with its last reply"
                );
                return Ok(());
            }
            let data = match command {
                1 => read(len)?,
                0 => vec![0; len],
                _ => Vec::new(),
            };
            let range = offset..offset + data.len();
            let touches = |other: &&Pending| {
                other.offset < range.end && range.start < other.offset + other.data.len()
            };
            let writes = |other: &&Pending| other.command == 1 && command == 1;
            assert_eq!(pending.iter().filter(touches).filter(writes).count(), 0);
            pending.push(Pending {
                command,
                cookie: header[8..16].try_into().unwrap(),
                offset,
                data,
            });
        } else {
            let at = thread_rng().gen_range(0..pending.len());
            let mut request = pending.remove(at);
            let place = request.offset..request.offset + request.data.len();
            match request.command {
                1 => disk[place].copy_from_slice(&request.data),
                _ => request.data.copy_from_slice(&disk[place]),
            }
            let mut reply = vec![0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0];
            reply.extend(request.cookie);
            if request.command == 0 {
                reply.extend(request.data);
            }
            let mut rest = &reply[..];
            while !rest.is_empty() {
                let n = stream.write(&[IoSlice::new(rest)], true)?;
                rest = &rest[n..];
            }
        }
    }
}

fn now() -> std::time::Instant {
    std::time::Instant::now()
}

/// A connection to a server, which ends with it. Neither side takes a whole request at once.
fn connect() -> (Arc<Link>, JoinHandle<()>) {
    let [here, there] = pair(LEN / 2);
    let limits = LinkLimits {
        timeout: None,
        bytes_in_flight: 100_000,
        lose_when_silent: false,
    };
    let link = Arc::new(Link::new(here, Box::new(transmission()), limits, None));
    let server = thread::spawn(move || {
        let served = serve(&there);
        let ends = |error: io::Error| error.kind() == io::ErrorKind::UnexpectedEof;
        assert!(served.map_or_else(ends, |()| true));
    });
    (link, server)
}

fn write(link: &Link, offset: usize, payload: &[u8]) {
    let call = Call::Write {
        offset: offset as u64,
        payload,
        flags: CommandFlags::NONE,
    };
    link.call(call, &mut []).unwrap();
}

fn read(link: &Link, offset: usize, len: usize) -> Vec<u8> {
    let mut buf = vec![0; len];
    let call = Call::Read {
        offset: offset as u64,
        into: 0..len,
        flags: CommandFlags::NONE,
    };
    link.call(call, &mut buf).unwrap();
    buf
}

/// A difference is named by its place, and not by all of the bytes.
fn same(read: &[u8], written: &[u8]) {
    let differs = read
        .iter()
        .zip(written)
        .position(|(read, written)| read != written);
    assert_eq!((differs, read.len()), (None, written.len()));
}

/// Threads that lend their buffers get their own bytes, whichever of them reads, writes or waits, and
/// the session ends in order.

pub(crate) fn threads_share_a_connection() {
    let (link, server) = connect();
    let callers: Vec<_> = (0..3_u8)
        .map(|number| {
            let link = link.clone();
            thread::spawn(move || {
                let (offset, data) = (usize::from(number) * LEN, vec![number + 1; LEN]);
                write(&link, offset, &data);
                same(&read(&link, offset, LEN), &data);
            })
        })
        .collect();
    for caller in callers {
        caller.join().unwrap();
    }
    link.disconnect(None).unwrap();
    server.join().unwrap();
}

/// A queue beside a caller, which both leave frames to each other and read for each other.

pub(crate) fn a_queue_beside_a_caller() {
    let (link, server) = connect();
    let queue = {
        let link = link.clone();
        thread::spawn(move || {
            let place = link.place();
            for offset in [0, LEN as u64] {
                let buffer = vec![9; LEN];
                let call = Call::Fill { offset, buffer };
                link.submit(place.index(), call, &mut [], None).unwrap();
            }
            link.flush(place.index()).unwrap();
            for _ in 0..2 {
                let done = link.wait(place.index(), &mut []).unwrap();
                assert!(done.reply.into_result().is_ok());
            }
        })
    };
    write(&link, 2 * LEN, &[7; LEN]);
    same(&read(&link, 2 * LEN, LEN), &[7; LEN]);
    queue.join().unwrap();
    link.disconnect(None).unwrap();
    server.join().unwrap();
}

/// A server that goes away, or a thread that ends the session, leaves no thread waiting.

pub(crate) fn a_connection_ends() {
    let (link, server) = connect();
    let callers: Vec<_> = (0..2_u8)
        .map(|number| {
            let link = link.clone();
            thread::spawn(move || {
                let call = Call::Read {
                    offset: u64::from(number) * LEN as u64,
                    into: 0..LEN,
                    flags: CommandFlags::NONE,
                };
                let mut buf = [9; LEN];
                if link.call(call, &mut buf).is_ok() {
                    assert_eq!(buf, [0; LEN]);
                }
            })
        })
        .collect();
    let _ = link.disconnect(None);
    for caller in callers {
        caller.join().unwrap();
    }
    drop(link);
    server.join().unwrap();
}

/// Changes of the same bytes, of which some are left in flight by their threads, are never at the
/// server at once, and each comes to its turn.

pub(crate) fn changes_of_the_same_bytes() {
    let (link, server) = connect();
    let locks = Arc::<SharedRangeLocks>::default();
    let callers: Vec<_> = (0..3_u8)
        .map(|number| {
            let (link, locks) = (link.clone(), locks.clone());
            thread::spawn(move || {
                let start = u64::from(number) * PART as u64;
                let range = start..start + LEN as u64;
                let guard = locks.lock_range(range, None, || None).unwrap();
                if number == 0 {
                    // It does not wait for the answer.
                    let place = link.place();
                    let payload = bytes::Bytes::copy_from_slice(&[1; LEN]);
                    let request = Request::Write {
                        offset: start,
                        payload,
                        flags: CommandFlags::NONE,
                    };
                    let call = Call::Owned(request);
                    let cookie = link.submit(place.index(), call, &mut [], None).unwrap();
                    guard.leave_to(&link, cookie);
                    link.flush(place.index()).unwrap();
                } else {
                    write(&link, usize::from(number) * PART, &[number + 1; LEN]);
                }
                drop(guard);
            })
        })
        .collect();
    for caller in callers {
        caller.join().unwrap();
    }
    let data = read(&link, 2 * PART, PART);
    assert!(
        data.iter().all(|byte| *byte == data[0] && *byte > 0),
        "{data:?}"
    );
    link.disconnect(None).unwrap();
    server.join().unwrap();
}
