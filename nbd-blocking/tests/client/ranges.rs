//! Parts of an export: cursors, and blocks that are larger than the request.

use crate::support::{
    Random,
    bytes::{self, D},
    model::Model,
    says,
    script::{Negotiation, session},
    spawn, within,
};
use nbd_blocking::{Client, CommandFlags, ConnectOptions, Cursor, Error, Misuse};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};

pub(crate) const MIB: usize = 1 << 20;

pub(crate) fn enter(model: Model) -> Client {
    let (stream, _) = model.unix();
    ConnectOptions::new()
        .connect_over(stream, None)
        .expect("entered")
}

#[test]
fn a_cursor_reads_writes_and_seeks_like_a_file_of_fixed_length() {
    within(10, || {
        let mut cursor = Cursor::new(enter(Model::new(10_000)));
        assert_eq!(cursor.position(), 0);
        cursor.write_all(b"start").expect("written");
        assert_eq!(cursor.position(), 5);
        assert_eq!(cursor.seek(SeekFrom::End(-3)).expect("inside"), 9997);
        assert_eq!(cursor.write(b"the end").expect("written"), 3);
        assert_eq!(cursor.write(b"more").expect("nothing fits"), 0);
        let error = cursor.write_all(b"more").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::WriteZero);
        assert_eq!(cursor.read(&mut [0; 9]).expect("the end"), 0);
        cursor.flush().expect("flushed");
        assert_eq!(cursor.seek(SeekFrom::Current(-3)).expect("inside"), 9997);
        let mut text = String::new();
        cursor.read_to_string(&mut text).expect("read to the end");
        assert_eq!(text, "the");
        assert_eq!(cursor.seek(SeekFrom::Start(20_000)).expect("legal"), 20_000);
        assert_eq!(cursor.read(&mut [0; 9]).expect("behind the end"), 0);
        assert_eq!(cursor.write(&[0; 9]).expect("behind the end"), 0);
        for wrong in [SeekFrom::Current(-20_001), SeekFrom::End(i64::MIN)] {
            let error = cursor.seek(wrong).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput);
            assert_eq!(cursor.position(), 20_000);
        }
        cursor.rewind().expect("legal");
        let mut start = [0; 6];
        cursor.read_exact(&mut start).expect("read");
        assert_eq!(&start, b"start\0");
        cursor.seek(SeekFrom::Start(9_999)).expect("legal");
        let error = cursor.read_exact(&mut start).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::UnexpectedEof);
    });
}

#[test]
fn a_cursor_reports_how_a_command_failed() {
    within(10, || {
        let mut cursor = Cursor::new(enter(Model {
            scratch: Some(100),
            ..Model::new(10_000)
        }));
        let error = cursor.read(&mut [0; 512]).unwrap_err();
        says(
            &error,
            &["NBD_CMD_READ failed", "NBD_EIO", "offset 100", "scratched"],
        );
        assert_eq!(cursor.position(), 0);
    });
}

#[test]
fn parts_of_blocks_are_read_and_written() {
    // C-121
    within(10, || {
        let model = Model::new(MIB).block_sizes(4096, 4096, 64 << 10);
        let (stream, disk) = model.unix();
        let client = ConnectOptions::new()
            .connect_over(stream, None)
            .expect("entered");
        let mut expected = vec![0; MIB];
        let mut random = Random::new(8);
        for _ in 0..100 {
            let at = random.below(MIB - 1);
            let longest = if random.below(4) == 0 { MIB } else { 10_000 };
            let len = 1 + random.below(longest.min(MIB - at));
            let data = random.bytes(len);
            client.write_all_at(&data, at as u64).expect("written");
            expected[at..at + len].copy_from_slice(&data);
            let at = random.below(MIB - len + 1);
            let mut data = vec![0; len];
            client.read_exact_at(&mut data, at as u64).expect("read");
            assert!(data == expected[at..at + len]);
        }
        assert!(*disk.lock().expect("no panics") == expected);
    });
}

#[test]
fn writers_to_parts_of_one_block_lose_nothing() {
    within(20, || {
        let model = Model::new(64 << 10).block_sizes(4096, 4096, 64 << 10);
        let (stream, disk) = model.unix();
        let client = ConnectOptions::new()
            .connect_over(stream, None)
            .expect("entered");
        // Every thread has every eighth piece of 100 bytes, across the borders of blocks, and one
        // writes whole blocks behind them.
        let writers: Vec<_> = (0..8_usize)
            .map(|number| {
                let client = client.clone();
                spawn(move || {
                    for round in 1..=20 {
                        let own = u8::try_from(10 * number + round % 10).expect("short");
                        for piece in (number..120).step_by(8) {
                            let offset = 100 * piece as u64;
                            client.write_all_at(&[own; 100], offset).expect("written");
                        }
                        if number == 0 {
                            let block = vec![own; 8192];
                            client.write_all_at(&block, 16_384).expect("written");
                        }
                    }
                })
            })
            .collect();
        for writer in writers {
            writer.join().expect("no writer fails");
        }
        let disk = disk.lock().expect("no panics");
        for piece in 0..120 {
            let expected = u8::try_from(10 * (piece % 8)).expect("short");
            assert_eq!(
                disk[100 * piece..100 * (piece + 1)],
                [expected; 100],
                "{piece}"
            );
        }
        assert!(disk[16_384..24_576].iter().all(|byte| *byte == 0));
    });
}

#[test]
fn zeroes_are_written_apart_from_parts_of_the_same_block() {
    within(20, || {
        let model = Model::new(64 << 10).block_sizes(4096, 4096, 64 << 10);
        let (stream, disk) = model.unix();
        let client = ConnectOptions::new()
            .connect_over(stream, None)
            .expect("entered");
        for round in 0..100 {
            client.write_all_at(&[7; 4096], 0).expect("written");
            let other = client.clone();
            let writer = spawn(move || other.write_all_at(&[1; 100], 0).expect("written"));
            let flags = CommandFlags::NONE;
            client.write_zeroes(0, 4096, flags).expect("zeroed");
            writer.join().expect("the writer does not fail");
            let disk = disk.lock().expect("no panics");
            let zero = disk[100..4096].iter().all(|byte| *byte == 0);
            assert!(zero, "the old data is back in round {round}");
        }
    });
}

#[test]
fn nothing_is_sent_of_a_range_that_leaves_the_export() {
    // C-123
    within(10, || {
        for (minimum, size) in [(1, 40 << 20), (4096, 40 << 20), (4096, (40 << 20) + 512)] {
            let negotiation = Negotiation {
                size,
                block_sizes: Some((minimum, 4096, 1 << 20)),
                ..Negotiation::structured()
            };
            let (client, server) = session(negotiation, &ConnectOptions::new(), |peer| {
                peer.disconnect(); // and nothing before
            });
            let long = vec![0; 8 << 20];
            let none = CommandFlags::NONE;
            for offset in [
                size - 4096,
                size - 1,
                size,
                u64::MAX - 100,
                u64::MAX - (8 << 20),
            ] {
                let errors = [
                    client.write_all_at(&long, offset).unwrap_err(),
                    client.read_exact_at(&mut [0; 5000], offset).unwrap_err(),
                    client.trim(offset, 1 << 33, none).unwrap_err(),
                    client.write_zeroes(offset, u64::MAX - 5, none).unwrap_err(),
                    client.cache(offset, 8192).unwrap_err(),
                ];
                for error in errors {
                    let Error::Misuse(Misuse::OutOfBounds { offset: at, .. }) = error else {
                        panic!("{error:?}");
                    };
                    assert_eq!(at, offset);
                }
            }
            assert_eq!(client.read_at(&mut [0; 512], size).expect("the end"), 0);
            assert_eq!(client.write_at(&[0; 512], u64::MAX).expect("the end"), 0);
            client
                .read_exact_at(&mut [], u64::MAX)
                .expect("nothing to do");
            client.write_all_at(&[], 5).expect("nothing to do");
            drop(client);
            server.join().expect("nothing was sent");
        }
    });
}

#[test]
fn an_incomplete_block_at_the_end_is_out_of_reach_of_cursors_and_queues() {
    // C-129
    within(10, || {
        let negotiation = Negotiation {
            size: 10_100,
            block_sizes: Some((512, 4096, 64 << 10)),
            ..Negotiation::structured()
        };
        let (client, server) = session(negotiation, &ConnectOptions::new(), |peer| {
            let mut disk = vec![0; 10_100];
            loop {
                let asked = peer.request();
                let start = usize::try_from(asked.offset).expect("short");
                let range = start..start + usize::try_from(asked.len).expect("short");
                match asked.command {
                    0 => peer.says(bytes::data(
                        D,
                        asked.cookie,
                        asked.offset,
                        &disk[range.clone()],
                    )),
                    1 => {
                        disk[range.clone()].copy_from_slice(&peer.hears(range.len()));
                        peer.says(bytes::ch(D, 0, asked.cookie, []));
                    }
                    2 => return,
                    _ => peer.says(bytes::ch(D, 0, asked.cookie, [])),
                }
                assert!(range.end <= 9728, "{asked:?}");
            }
        });
        assert_eq!((client.size(), client.export().size), (9728, 10_100));
        let mut cursor = Cursor::new(client.clone());
        assert_eq!(cursor.seek(SeekFrom::End(-100)).expect("inside"), 9628);
        assert_eq!(cursor.write(&[7; 600]).expect("written"), 100);
        assert_eq!(cursor.write(&[7; 600]).expect("nothing fits"), 0);
        cursor.rewind().expect("legal");
        let mut all = Vec::new();
        cursor.read_to_end(&mut all).expect("read");
        assert_eq!(all.len(), 9728);
        assert!(all.ends_with(&[7; 100]) && !all.ends_with(&[7; 101]));
        let mut queue = client.queue();
        let none = CommandFlags::NONE;
        for error in [
            queue.read(vec![0; 372], 9728).unwrap_err(),
            queue.read(vec![0; 884], 9216).unwrap_err(),
            queue.write(vec![0; 100], 9728, none).unwrap_err(),
            queue.trim(0, 10_100, none).unwrap_err(),
        ] {
            says(&error, &["only 9728 of the export's 10100 bytes"]);
        }
        queue.read(vec![0; 512], 9216).expect("submitted");
        let completion = queue.complete().expect("connected").expect("one");
        assert_eq!(completion.into_buffer().expect("read"), all[9216..]);
        drop((queue, cursor, client));
        server.join().expect("the script ends");
    });
}

#[test]
fn a_range_that_a_server_finds_too_long_is_tried_again_in_parts() {
    // C-126
    within(10, || {
        let len = 1_u64 << 30;
        let negotiation = Negotiation {
            block_sizes: Some((1, 4096, 32 << 20)),
            ..Negotiation::structured()
        };
        let (client, server) = session(negotiation, &ConnectOptions::new(), move |peer| {
            let whole = peer.request();
            assert_eq!((whole.command, whole.offset, whole.len), (6, 0, len));
            peer.says(bytes::error(D, whole.cookie, 75, "too long", None));
            let mut next = 0;
            while next < len {
                let part = peer.request();
                assert_eq!((part.command, part.offset), (6, next));
                assert!(part.len <= 32 << 20);
                next += part.len;
                peer.says(bytes::sr(0, part.cookie, []));
            }
            let short = peer.request();
            peer.says(bytes::sr(22, short.cookie, []));
            peer.disconnect();
        });
        client
            .write_zeroes(0, len, CommandFlags::NONE)
            .expect("done in parts");
        let error = client
            .write_zeroes(0, 4096, CommandFlags::NONE)
            .unwrap_err();
        says(&error, &["NBD_CMD_WRITE_ZEROES failed", "NBD_EINVAL"]);
        drop(client);
        server.join().expect("the script ends");
    });
}

#[test]
fn a_queue_asks_no_server_for_zeroes_that_may_be_left_out() {
    // A known server acknowledges more than 64 MiB of zeroes and writes only the first of them.
    within(10, || {
        let (client, server) = session(
            Negotiation {
                block_sizes: None,
                ..Negotiation::structured()
            },
            &ConnectOptions::new(),
            |peer| peer.disconnect(),
        );
        let mut queue = client.queue();
        let error = queue
            .write_zeroes(0, (32 << 20) + 1, CommandFlags::NONE)
            .unwrap_err();
        says(&error, &["NBD_CMD_WRITE_ZEROES was not sent", "33554432"]);
        drop((queue, client));
        server.join().expect("the script ends");
    });
}
