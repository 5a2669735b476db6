//! Buffers of reads that fail.

use super::{
    pipe::Pipe,
    server::{Behaviour, serve},
    sim::Sim,
};
use crate::{
    Export, NamedExports,
    client::{ConnectOptions, Error},
};
use bytes::BytesMut;
use nbd_proto::{BlockSizes, Errno, Failure, client::Limits};
use std::sync::Arc;

const SIZE: u64 = 1 << 20;
/// The longest request, in bytes.
const PIECE: u32 = 64 << 10;
/// Offset of a bad block.
const BAD: u64 = 300_000;

/// A disk with a bad place.
struct Broken;

impl Export for Broken {
    fn size(&self) -> u64 {
        SIZE
    }

    fn block_sizes(&self) -> BlockSizes {
        BlockSizes::new(512, 4096, PIECE).unwrap()
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), Failure> {
        if (offset..offset + buf.len() as u64).contains(&BAD) {
            return Err(Errno::Io.into());
        }
        buf.fill(7);
        Ok(())
    }
}

#[test]
fn a_read_that_fails_gives_the_same_buffer_back() {
    for connections in [1, 2] {
        let sim = Sim::new(1);
        let exports = Arc::new(NamedExports::single(Arc::new(Broken)));
        let server = sim.clone();
        sim.on_connect(move |pipe: Pipe| {
            serve(&server, pipe, exports.clone(), Behaviour::default());
            Ok(())
        });
        sim.run(async {
            let limits = Limits {
                payload: PIECE,
                ..Limits::default()
            };
            let options = ConnectOptions::with_runtime(sim.clone());
            let options = options.connections(connections).limits(limits);
            let client = options.connect("nbd://localhost").await.unwrap();
            for (offset, len) in [
                (SIZE, 512),             // behind the end
                (BAD - BAD % 512, 4096), // one request
                (BAD - 10, 100),         // a part of a block
                (0, 600_000),            // several requests
            ] {
                let buffer = BytesMut::zeroed(len);
                let place = buffer.as_ptr();
                let failed = client.read_into(buffer, offset).await.unwrap_err();
                assert!(
                    matches!(failed.error, Error::Misuse(_) | Error::Failed { .. }),
                    "{failed:?}"
                );
                assert_eq!(failed.buffer.len(), len);
                assert_eq!(failed.buffer.as_ptr(), place, "{len} at {offset}");
                // It can be used again, for a part of a whole.
                let mut buffer = failed.buffer;
                buffer.truncate(512);
                let buffer = client.read_into(buffer, 0).await.unwrap();
                assert!(buffer.iter().all(|byte| *byte == 7));
            }
        });
    }
}
