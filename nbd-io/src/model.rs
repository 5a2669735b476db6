//! The model for tests of all exports: an array of bytes that an export has to behave like.

mod recorder;

use crate::{
    Export, ZeroMode,
    runtime::{BlockOn, Runtime},
    transport::block_on_ready,
};
use nbd_proto::{ContextName, Errno, Failure, meta::Allocation};
use proptest::prelude::*;
use std::{
    fmt,
    future::{Pending, pending},
    ops::{ControlFlow, Range},
    time::Duration,
};

pub(crate) use recorder::Recorder;

pub(crate) const DATA: u64 = 0;
pub(crate) const HOLE: u64 = Allocation::HOLE | Allocation::ZERO;
pub(crate) const ZERO: u64 = Allocation::ZERO;
pub(crate) const NO_HOLE: ZeroMode = ZeroMode {
    no_hole: true,
    fast: false,
    fua: false,
};

/// The lengths and statuses of `base:allocation`.
pub(crate) fn status(export: &dyn Export, offset: u64, len: u64) -> Vec<(u64, u64)> {
    let mut extents = Vec::new();
    let context = ContextName::base_allocation();
    export
        .block_status(&context, offset, len, &mut |extent| {
            extents.push((extent.len, extent.status));
            ControlFlow::Continue(())
        })
        .unwrap();
    extents
}

pub(crate) fn read(export: &dyn Export, offset: u64, len: usize) -> Vec<u8> {
    // Not zeroes, so that bytes that are not filled are noticed.
    let mut buf = vec![0xee; len];
    export.read(offset, &mut buf).unwrap();
    buf
}

/// A runtime that carries everything out in place.
#[derive(Clone)]
pub(crate) struct InPlace;

impl Runtime for InPlace {
    type Sleep = Pending<()>;

    fn sleep(&self, _: Duration) -> Self::Sleep {
        pending()
    }

    fn now(&self) -> Duration {
        Duration::ZERO
    }

    fn spawn_blocking(&self, job: impl FnOnce() + Send + 'static) {
        job();
    }
}

impl BlockOn for InPlace {
    fn block_on<F: Future>(&self, future: F) -> F::Output {
        block_on_ready(future)
    }
}

pub(crate) fn errno<T: fmt::Debug>(result: Result<T, Failure>) -> Errno {
    result.unwrap_err().errno
}

pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    bytes == vec![0; bytes.len()]
}

#[derive(Clone, Debug)]
pub(crate) enum Operation {
    Read,
    Write { seed: u8, fua: bool },
    Zero(ZeroMode),
    Trim,
    Flush,
    Status,
}

/// Operations on an export of `size` bytes that consists of pages.
pub(crate) fn operations(
    size: usize,
    page: usize,
) -> impl Strategy<Value = Vec<(Operation, Range<usize>)>> {
    let operation = prop_oneof![
        4 => Just(Operation::Read),
        6 => any::<(u8, bool)>().prop_map(|(seed, fua)| Operation::Write { seed: seed % 8, fua }),
        4 => any::<[bool; 3]>().prop_map(|[no_hole, fast, fua]| {
            Operation::Zero(ZeroMode { no_hole, fast, fua })
        }),
        4 => Just(Operation::Trim),
        1 => Just(Operation::Flush),
        2 => Just(Operation::Status),
    ];
    // Offsets near the ends of pages and of sectors, and any.
    let edge = prop_oneof![
        (0..=size / page, -3..=3_isize)
            .prop_map(move |(at, by)| (at * page).saturating_add_signed(by)),
        (0..=size / 512).prop_map(|sector| sector * 512),
        0..=size,
        Just(size),
    ]
    .prop_map(move |at| at.min(size));
    let one = (operation, edge.clone(), edge)
        .prop_map(|(operation, a, b)| (operation, a.min(b)..a.max(b)));
    prop::collection::vec(one, 1..40)
}

/// Does the same to an export and to an array of bytes.
pub(crate) fn play(
    export: &dyn Export,
    model: &mut [u8],
    operation: &Operation,
    range: Range<usize>,
) {
    let (offset, len) = (range.start as u64, range.len() as u64);
    let bytes = &mut model[range];
    match *operation {
        Operation::Read => {
            assert!(read(export, offset, bytes.len()) == bytes);
            let mut buf = vec![0xee; bytes.len()];
            if let Some(done) = export.read_now(offset, &mut buf) {
                done.unwrap();
                assert!(buf == bytes);
            }
        }
        // A seed of 0 writes zeroes.
        Operation::Write { seed, fua } => {
            for (at, byte) in bytes.iter_mut().enumerate() {
                *byte = seed.wrapping_mul(at.to_le_bytes()[0]);
            }
            export.write(offset, bytes, fua).unwrap();
        }
        Operation::Zero(mode) => match export.write_zeroes(offset, len, mode) {
            Err(failure) if mode.fast && failure.errno == Errno::NotSup => {}
            done => {
                done.unwrap();
                bytes.fill(0);
            }
        },
        Operation::Trim => {
            export.trim(offset, len, false).unwrap();
            bytes.copy_from_slice(&read(export, offset, bytes.len()));
        }
        Operation::Flush => export.flush().unwrap(),
        Operation::Status => {
            let mut rest = &*bytes;
            let mut last = None;
            for (len, status) in status(export, offset, len) {
                let (extent, next) = rest.split_at(usize::try_from(len).unwrap());
                assert!(!extent.is_empty() && last != Some(status));
                assert!(status & ZERO == 0 || is_zero(extent));
                (rest, last) = (next, Some(status));
            }
            assert!(rest.is_empty());
        }
    }
}
