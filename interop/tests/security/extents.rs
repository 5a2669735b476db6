//! Vulnerabilities in the status of very long ranges.

use crate::{
    bounded::bounded,
    drivers::Setup,
    raw::{ACK, CLIENT, GO, SET_META_CONTEXT, STRUCTURED, last_reply, option, request},
};
use nbd_io::{Export, NamedExports};
use nbd_proto::{
    BlockSizes, CommandFlags, ContextName, Errno, Failure,
    meta::{Allocation, Extent},
};
use std::{
    io::{Read, Write},
    sync::Arc,
};

/// An export with a single extent.
#[derive(Clone, Copy)]
struct Endless {
    block_sizes: BlockSizes,
    /// It describes more than it was asked for.
    goes_beyond: bool,
}

impl Export for Endless {
    fn size(&self) -> u64 {
        1 << 62
    }

    fn block_sizes(&self) -> BlockSizes {
        self.block_sizes
    }

    fn may_block(&self) -> bool {
        false
    }

    fn read(&self, _: u64, buf: &mut [u8]) -> Result<(), Failure> {
        buf.fill(0);
        Ok(())
    }

    fn finds_zeroes(&self) -> bool {
        true
    }

    fn allocation(&self, _: u64, len: u64) -> Result<Extent, Failure> {
        let status = Allocation::HOLE | Allocation::ZERO;
        let len = if self.goes_beyond { u64::MAX } else { len };
        Ok(Extent { len, status })
    }
}

/// As much as a request can ask for with a length of 32 bits.
pub(crate) const LONGEST: u64 = u32::MAX as u64;

/// A client without extended headers, which asks for statuses.
pub(crate) fn compact() -> nbd_blocking::ConnectOptions {
    nbd_blocking::ConnectOptions::new()
        .context(ContextName::base_allocation())
        .extended_headers(false)
}

/// Asks for the status of all of that on a connection that was greeted, by hand.
pub(crate) fn ask_for_all(stream: &mut (impl Read + Write)) {
    stream.write_all(&CLIENT).unwrap();
    for step in [
        option(STRUCTURED, &[]),
        option(
            SET_META_CONTEXT,
            b"\0\0\0\0\0\0\0\x01\0\0\0\x0fbase:allocation",
        ),
        option(GO, b"\0\0\0\0\0\x01\0\x03"),
    ] {
        stream.write_all(&step).unwrap();
        assert_eq!(last_reply(stream), ACK);
    }
    stream.write_all(&request(7, 1, 0, u32::MAX)).unwrap();
}

/// Asks for the status of as much as 32 bits can say, less `less`.
fn status_of_all(export: Endless, less: u64) {
    Setup::new(NamedExports::single(Arc::new(export))).attack(|host| {
        let client = compact().connect(&host.uri("")).unwrap();
        let len = LONGEST - less;
        let status = client.block_status(0, len, CommandFlags::NONE);
        if export.goes_beyond {
            // The fault of the back end is a failure of this request.
            assert_eq!(status.unwrap_err().errno(), Some(Errno::Io));
        } else {
            let extents = &status.unwrap()[0].extents;
            assert_eq!(extents.len(), 1);
            assert!((1..=len).contains(&extents[0].len), "{extents:?}");
        }
        client.disconnect().unwrap();
    });
}

#[test]
fn cve_2025_47711_a_status_longer_than_the_longest_question_fits_its_field() {
    // H-056
    bounded(64, || {
        for goes_beyond in [false, true] {
            let block_sizes = BlockSizes::UNKNOWN;
            status_of_all(
                Endless {
                    block_sizes,
                    goes_beyond,
                },
                0,
            );
        }
    });
}

#[test]
fn cve_2025_47712_the_longest_question_is_not_rounded_up_to_nothing() {
    // H-056
    bounded(64, || {
        let export = Endless {
            block_sizes: BlockSizes::new(4096, 64 << 10, 32 << 20).unwrap(),
            goes_beyond: false,
        };
        status_of_all(export, 4095);
        // An odd size is refused, and not rounded to whole blocks.
        Setup::new(NamedExports::single(Arc::new(export))).attack(|host| {
            let mut stream = host.greeted();
            ask_for_all(&mut stream);
            let mut chunk = [0; 24];
            stream.read_exact(&mut chunk).unwrap();
            let errno = u32::from_be_bytes(chunk[20..].try_into().unwrap());
            assert_eq!(errno, Errno::Inval.code());
        });
    });
}
