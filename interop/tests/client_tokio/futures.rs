//! Features of the asynchronous client alone: a task with many requests in flight, where a thread
//! has a queue, and several connections of one client; and values that outlive their runtime.

use interop::{Image, Listen, Scripted};
use nbd_proto::{CommandFlags, Uri};
use std::{thread, time::Duration};

use crate::{
    peers::{Who, is_hammered},
    support::{KIB, MIB, assert_has, assert_same, connect, options, pattern, run},
    waiting::flight::{Request, together},
};

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
            let write = |block| Request::Write {
                offset: block * BLOCK,
                data: pattern(block, BLOCK),
                flags: CommandFlags::NONE,
            };
            let writes = (0..BLOCKS).map(write).collect();
            for written in client.wait(together(&client, writes, 64)) {
                written.unwrap();
            }
            // Not in order.
            let order: Vec<u64> = (0..BLOCKS).map(|at| at * 37 % BLOCKS).collect();
            let read = |block: &u64| Request::Read {
                offset: block * BLOCK,
                len: usize::try_from(BLOCK).unwrap(),
            };
            let reads = order.iter().map(read).collect();
            for (block, read) in order.iter().zip(client.wait(together(&client, reads, 64))) {
                assert_same(&read.unwrap(), &pattern(*block, BLOCK), block * BLOCK);
            }
            client.disconnect().unwrap();
        }
    });
}

#[test]
fn commands_of_every_kind_are_in_flight_together() {
    run(|| {
        const PART: u64 = 64 * KIB;
        let flags = CommandFlags::NONE;
        for who in Who::ALL {
            let Some(server) = who.start(&Image::raw(8 * MIB)) else {
                continue;
            };
            let client = connect(&server, "disk");
            let export = client.export();
            let len = PART;
            let mut requests = Vec::new();
            for part in 0..16 {
                // Four disjoint parts, one for each command that changes data.
                let offset = part * 4 * PART;
                let data = pattern(part, PART);
                requests.push(Request::Write {
                    offset,
                    data,
                    flags,
                });
                let offset = offset + PART;
                if export.can_write_zeroes() {
                    requests.push(Request::Zeroes { offset, len, flags });
                }
                let offset = offset + PART;
                if export.can_trim() {
                    requests.push(Request::Trim { offset, len, flags });
                }
                if export.can_cache() {
                    requests.push(Request::Cache { offset: 0, len });
                }
                requests.push(Request::Flush);
                requests.push(Request::Read {
                    offset: offset + PART,
                    len: 512,
                });
            }
            let count = requests.len();
            let answers = client.wait(together(&client, requests, 16));
            assert_eq!(answers.len(), count);
            for answer in answers {
                assert!(answer.unwrap().iter().all(|byte| *byte == 0));
            }
            for part in 0..16 {
                assert_has(&client, part * 4 * PART, &pattern(part, PART));
            }
            client.disconnect().unwrap();
        }
    });
}

#[test]
fn several_connections_share_the_requests() {
    // C-189, C-190
    run(|| {
        for who in Who::ALL {
            let Some(server) = who.serve(&Image::raw(8 * MIB), Listen::Tcp4, None) else {
                continue;
            };
            let client = options()
                .connections(4)
                .connect(&server.uri("disk"))
                .unwrap();
            let may = client.export().can_multi_conn();
            assert_eq!(client.connections(), if may { 4 } else { 1 });
            is_hammered(&client);
            client.disconnect().unwrap();
            assert!(client.is_lost());
        }
    });
}

#[test]
fn a_negotiation_may_be_dropped_outside_a_runtime() {
    run(|| {
        // The server does not answer NBD_OPT_ABORT.
        let server = Scripted::start(1, |_, peer| {
            peer.greet(3);
            peer.rest();
        });
        let uri: Uri = server.uri("").parse().unwrap();
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let options = nbd_tokio::ConnectOptions::new();
        let greeted = runtime.block_on(options.start(&uri)).unwrap();
        // The timer that was set for the greeting has ended, and a task would set another one.
        thread::sleep(Duration::from_millis(2100));
        drop(greeted.negotiation().unwrap());
        server.finish();
    });
}
