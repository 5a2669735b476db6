//! Features of the blocking client alone: a queue for a thread that wants many requests in flight,
//! where a task has futures, and the traits of `std::io`.

use std::{
    collections::HashMap,
    io::{Read, Seek, SeekFrom, Write},
    process::Command,
};

use interop::{Image, Peer, QemuNbd, require};
use nbd_blocking::{CommandFlags, Cursor, Error, Misuse};

use crate::{
    peers::Who,
    processes::{allocation, running, wait_until_gone},
    support::{KIB, MIB, assert_has, assert_same, connect, options, pattern, run},
};

#[test]
fn an_export_is_a_seekable_stream() {
    run(|| {
        for who in Who::ALL {
            let Some(server) = who.start(&Image::raw(MIB)) else {
                continue;
            };
            let mut cursor = Cursor::new(connect(&server, "disk"));
            let data = pattern(4, 10_000);
            cursor.seek(SeekFrom::End(-10_000)).unwrap();
            cursor.write_all(&data).unwrap();
            cursor.flush().unwrap();
            let mut rest = Vec::new();
            cursor.seek(SeekFrom::Current(-10_000)).unwrap();
            cursor.read_to_end(&mut rest).unwrap();
            assert_same(&rest, &data, MIB - 10_000);
        }
    });
}

#[test]
fn sixty_four_requests_are_in_flight() {
    run(|| {
        const BLOCK: u64 = 16 * KIB;
        const BLOCKS: u64 = 512;
        for who in Who::ALL {
            let Some(server) = who.start(&Image::raw(BLOCKS * BLOCK)) else {
                continue;
            };
            let client = connect(&server, "disk");
            let mut queue = client.queue();
            let mut written = 0;
            for block in 0..BLOCKS {
                if queue.outstanding() == 64 {
                    queue.complete().unwrap().unwrap().result.unwrap();
                    written += 1;
                }
                let data = pattern(block, BLOCK);
                queue
                    .write(data, block * BLOCK, CommandFlags::NONE)
                    .unwrap();
            }
            assert_eq!(queue.outstanding(), 64);
            while let Some(completion) = queue.complete().unwrap() {
                completion.result.unwrap();
                written += 1;
            }
            assert_eq!(written, BLOCKS);

            let mut blocks = HashMap::new();
            let mut next = 0;
            loop {
                while queue.outstanding() < 64 && next < BLOCKS {
                    // Not in order.
                    let block = next * 37 % BLOCKS;
                    let cookie = queue
                        .read(vec![0; usize::try_from(BLOCK).unwrap()], block * BLOCK)
                        .unwrap();
                    blocks.insert(cookie, block);
                    next += 1;
                }
                let Some(completion) = queue.complete().unwrap() else {
                    break;
                };
                let block = blocks.remove(&completion.cookie).unwrap();
                let data = completion.into_buffer().unwrap();
                assert_same(&data, &pattern(block, BLOCK), block * BLOCK);
            }
            assert!(blocks.is_empty());
            drop(queue);
            client.disconnect().unwrap();
        }
    });
}

#[test]
fn reads_end_with_the_export() {
    run(|| {
        for who in Who::ALL {
            let Some(server) = who.start(&Image::raw(MIB)) else {
                continue;
            };
            let client = connect(&server, "disk");
            let mut buf = [0; 1024];
            assert_eq!(client.read_at(&mut buf, MIB - 512).unwrap(), 512);
            assert_eq!(client.read_at(&mut buf, MIB).unwrap(), 0);
            assert_eq!(client.read_at(&mut buf, MIB + 1).unwrap(), 0);
            client.disconnect().unwrap();
        }
    });
}

#[test]
fn a_queue_splits_nothing() {
    run(|| {
        const SIZE: u64 = 6 << 30;
        let Some(image) = Image::qcow2(SIZE) else {
            return;
        };
        let image = image.io("write -P 9 5G 64k");
        let Some(server) = QemuNbd::new(image).discard().start() else {
            return;
        };
        let client = connect(&server, "");
        let mut queue = client.queue();
        queue.write_zeroes(0, SIZE, CommandFlags::NONE).unwrap();
        queue.complete().unwrap().unwrap().result.unwrap();
        drop(queue);
        assert_has(&client, 5 << 30, &[0; 4096]);
        client.disconnect().unwrap();

        let Some(server) = Who::NbdServer.start(&Image::raw(40 * MIB)) else {
            return;
        };
        let client = options().connect(&server.uri("disk")).unwrap();
        let mut queue = client.queue();
        let error = queue
            .write(vec![0; (32 << 20) + 1], 0, CommandFlags::NONE)
            .unwrap_err();
        assert!(
            matches!(error, Error::Misuse(Misuse::TooLong { .. })),
            "{error:?}"
        );
        drop(queue);
        client.disconnect().unwrap();
    });
}

#[test]
fn a_queue_keeps_the_connection() {
    run(|| {
        let Some(_installed) = require(Peer::Nbdkit) else {
            return;
        };
        let image = Image::raw(MIB);
        let shown = image.path().to_str().unwrap().to_owned();
        let mut command = Command::new("nbdkit");
        command.args(["-s", "file"]).arg(image.path());
        let client = allocation("").connect_command(command).unwrap();
        let queue = client.queue();
        drop(client);
        assert_eq!(running(&shown), 1);
        drop(queue);
        wait_until_gone(&shown);
    });
}
