//! Servers whose block status is too much, or too little, over real sockets.

use crate::{
    bounded::bounded,
    clients::{
        BLOCK_STATUS, BLOCK_STATUS_EXT, DONE, SIZE, Style, allocation, answers, chunk,
        extended_chunk, negotiate,
    },
    drivers::each_way,
};
use interop::Scripted;
use nbd_proto::CommandFlags;

#[test]
fn a_walk_along_extents_of_one_byte_comes_to_its_items() {
    // C-247
    bounded(64, || {
        each_way!(|options, uri| {
            let server = Scripted::start(1, |_, peer| {
                negotiate(peer, Style::Structured, 1 << 50);
                // One byte for each question, of the same status each time.
                while let Some(cookie) = peer.next_cookie() {
                    let payload = [0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 3];
                    peer.send(&chunk(DONE, BLOCK_STATUS, cookie, &payload));
                }
            });
            let client = options
                .context(allocation())
                .connect(&uri(&server))
                .unwrap();
            let runs = client.extents(0..1 << 50).take(3).map(Result::unwrap);
            let covered: u64 = runs.map(|run| run.len).sum();
            assert!(covered >= 3, "{covered}");
            drop(client);
            server.finish();
        });
    });
}

#[test]
fn extents_whose_lengths_have_no_sum_end_with_the_export() {
    // H-029
    bounded(64, || {
        each_way!(|options, uri| {
            let server = answers(Style::Extended, SIZE, |cookie| {
                let lengths = [512, u64::MAX, u64::MAX];
                let mut bytes = extended_chunk(BLOCK_STATUS_EXT, cookie, 0, 8 + 3 * 16);
                bytes.extend([0, 0, 0, 1, 0, 0, 0, 3]);
                for (len, status) in lengths.into_iter().zip(0_u64..) {
                    bytes.extend(len.to_be_bytes());
                    bytes.extend(status.to_be_bytes());
                }
                bytes
            });
            let client = options.context(allocation()).connect(&uri(&server));
            let client = client.unwrap();
            let found = client.block_status(0, SIZE, CommandFlags::NONE).unwrap();
            let extents = found[0].extents.iter();
            let lengths: Vec<_> = extents.map(|extent| extent.len).collect();
            assert_eq!(lengths, [512, SIZE - 512]);
            drop(client);
            server.finish();
        });
    });
}

#[test]
fn a_million_extents_take_no_more_memory_than_they_need_and_one_more_is_the_end() {
    // H-029, H-033
    const MOST: usize = 1 << 20;
    // The reply at the server, its record, and the extents at the client.
    bounded(160, || {
        for (len, count) in [(1_u32, MOST), (u32::MAX, MOST), (1, MOST + 1)] {
            let [data, hole] = [0_u32, 1].map(|status| [len.to_be_bytes(), status.to_be_bytes()]);
            let extents = [data, hole].as_flattened().as_flattened().repeat(MOST / 2);
            let mut payload = [&[0, 0, 0, 1][..], &extents].concat();
            if count > MOST {
                payload.extend_from_slice(data.as_flattened());
            }
            each_way!(|options, uri| {
                let payload = payload.clone();
                let server = answers(Style::Structured, SIZE, move |cookie| {
                    chunk(DONE, BLOCK_STATUS, cookie, &payload)
                });
                let client = options.context(allocation()).connect(&uri(&server));
                let client = client.unwrap();
                let found = client.block_status(0, SIZE, CommandFlags::NONE);
                if count > MOST {
                    assert!(found.unwrap_err().is_lost());
                } else {
                    let found = found.unwrap();
                    let sum: u64 = found[0].extents.iter().map(|extent| extent.len).sum();
                    assert_eq!(sum, SIZE);
                }
                drop(client);
                server.finish();
            });
        }
    });
}
