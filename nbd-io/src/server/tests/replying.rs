use super::loopback::{Session, target};
use crate::{Export, Memory, NamedExports, server::Replies};
use nbd_proto::{CommandFlags, HeaderStyle, client::Outcome};
use std::{io::IoSlice, sync::Arc};

/// Replies with short and long data, headers alone and long payloads in between.
fn filled(replies: &mut Replies) -> Vec<u8> {
    let mut expected = Vec::new();
    for (header, len) in [
        (&b"0123456789abcdef"[..], 4),
        (b"0123456789abcdef", 70_000),
        (b"0123456789abcdef0123456789abcdef01234567", 4096),
        (b"0123456789abcdef", 100_000),
        (b"0123456789abcdef", 100_000),
        (b"0123456789abcdef0123456789ab", 1),
    ] {
        let space = replies.stage(len).unwrap();
        for (at, byte) in space.iter_mut().enumerate() {
            *byte = at.to_le_bytes()[0];
        }
        expected.extend_from_slice(header);
        expected.extend_from_slice(space);
        replies.commit(header, len, None);
        assert_eq!(replies.len(), expected.len());
    }
    // Zeroes are in one place, however many they are.
    let (header, receipt, memory) = (b"0123456789abcdef", None, replies.memory());
    replies.commit_zeroes(header, 100_000, receipt);
    assert_eq!(replies.memory(), memory + header.len());
    expected.extend_from_slice(header);
    expected.resize(expected.len() + 100_000, 0);
    assert_eq!(replies.len(), expected.len());
    // A reply that failed after it was staged leaves nothing behind.
    replies.stage(10).unwrap().fill(1);
    replies.stage(1 << 20).unwrap().fill(1);
    expected
}

fn write(replies: &mut Replies, most: usize, slices: usize) -> Vec<u8> {
    let mut written = Vec::new();
    while !replies.is_empty() {
        let mut space = vec![IoSlice::new(&[]); slices];
        let count = replies.slices(&mut space);
        assert!(count > 0);
        let bytes: Vec<u8> = space[..count].iter().flat_map(|s| s.to_vec()).collect();
        let n = bytes.len().min(most);
        written.extend_from_slice(&bytes[..n]);
        replies.advance(n);
    }
    assert_eq!((replies.len(), replies.memory()), (0, 0));
    written
}

#[test]
fn replies_come_out_in_order_however_they_are_cut() {
    let mut replies = Replies::new();
    for (most, slices) in [(usize::MAX, 64), (usize::MAX, 1), (4097, 3), (511, 2)] {
        // The memory is used again.
        for _ in 0..2 {
            let expected = filled(&mut replies);
            assert!(write(&mut replies, most, slices) == expected);
        }
    }
    replies.shrink();
    let expected = filled(&mut replies);
    assert!(write(&mut replies, 1 << 20, 64) == expected);
}

#[test]
fn replies_to_reads_of_every_length_are_whole() {
    let disk = Memory::new(8 << 20);
    let data: Vec<u8> = (0..8_u32 << 20)
        .map(|at| (at.wrapping_mul(2_654_435_761) >> 24).to_le_bytes()[0])
        .collect();
    disk.write(0, &data, false).unwrap();
    let exports = NamedExports::single(Arc::new(disk));
    let mut session = Session::new(&exports, &target("", HeaderStyle::Structured));
    for len in [1, 512, 65_535, 65_536, 65_537, 1 << 20, 3, 8 << 20, 100_000] {
        let read = |client: &mut nbd_proto::client::Transmission| {
            client.read(0, len as u64, CommandFlags::NONE).unwrap().1
        };
        let read = session.ask(read, len);
        assert_eq!(read.outcome, Outcome::Done);
        assert!(read.data == data[..len]);
    }
}

#[test]
fn simple_replies_have_zeroes_where_there_is_nothing() {
    let disk = Memory::new(8 << 20);
    disk.write(4 << 20, b"data", false).unwrap();
    let exports = NamedExports::single(Arc::new(disk));
    let mut session = Session::new(&exports, &target("", HeaderStyle::Simple));
    for len in [1, 1023, 1024, 4096, 16_384, 16_385, 65_537, 1 << 20] {
        // Before the data, and up to it.
        for (offset, data) in [(0, &b""[..]), ((4 << 20) - len as u64, b"data")] {
            let len = len + data.len();
            let read = |client: &mut nbd_proto::client::Transmission| {
                let read = client.read(offset, len as u64, CommandFlags::NONE);
                read.unwrap().1
            };
            let read = session.ask(read, len);
            assert_eq!(read.outcome, Outcome::Done);
            let (zeroes, rest) = read.data.split_at(len - data.len());
            assert!(zeroes.iter().all(|byte| *byte == 0));
            assert_eq!(rest, data);
        }
    }
}
