use super::*;
use crate::{
    File, ReadOnly, export_info,
    model::{DATA, HOLE, Operation, errno, operations, play, read, status},
};
use nbd_proto::ContextName;
use proptest::prelude::*;
use std::ops::ControlFlow;

const BLOCK: usize = 8 << 10;
const SIZE: usize = 5 * BLOCK + 700;
const BLOCK_SIZE: u32 = 8 << 10;

/// A base with something everywhere but in its second block.
fn base(size: usize) -> (Arc<Memory>, Vec<u8>) {
    let mut bytes: Vec<u8> = (0..size).map(|at| at.to_le_bytes()[0] | 1).collect();
    bytes[BLOCK..2 * BLOCK].fill(0);
    let base = Arc::new(Memory::new(size as u64));
    base.write(0, &bytes, false).unwrap();
    (base, bytes)
}

fn layer(is_file: bool) -> Arc<dyn Export> {
    if is_file {
        let file = tempfile::tempfile().unwrap();
        file.set_len(SIZE as u64).unwrap();
        return Arc::new(File::from_std(file).unwrap());
    }
    // Longer than the base, and with something in it.
    let used = Memory::new(SIZE as u64 + 1000);
    used.write(0, &vec![0xdd; SIZE + 1000], false).unwrap();
    Arc::new(used)
}

#[derive(Clone, Debug)]
enum Step {
    Play(Operation, Range<usize>),
    Commit,
    Discard,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let plays = operations(SIZE, BLOCK);
    (
        plays,
        prop::collection::vec((any::<bool>(), any::<prop::sample::Index>()), 0..4),
    )
        .prop_map(|(plays, ends)| {
            let play = |(operation, range)| Step::Play(operation, range);
            let mut steps: Vec<_> = plays.into_iter().map(play).collect();
            for (commit, at) in ends {
                let step = if commit { Step::Commit } else { Step::Discard };
                steps.insert(at.index(steps.len() + 1), step);
            }
            steps
        })
}

proptest! {
    #[test]
    fn it_behaves_like_an_array_of_bytes_over_one_that_stays_as_it_is(
        steps in steps(),
        // Then written data goes to a disk.
        is_file in prop::bool::weighted(0.1),
    ) {
        let (base, mut below) = base(SIZE);
        let overlay = Overlay::with_blocks(base.clone(), layer(is_file), BLOCK_SIZE).unwrap();
        let mut model = below.clone();
        for step in steps {
            match step {
                Step::Play(operation, range) => {
                    play(&overlay, &mut model, &operation, range);
                    continue;
                }
                Step::Commit => {
                    overlay.commit().unwrap();
                    below.clone_from(&model);
                }
                Step::Discard => {
                    overlay.discard();
                    model.clone_from(&below);
                }
            }
            prop_assert!(read(&overlay, 0, SIZE) == model);
            prop_assert!(read(&*base, 0, SIZE) == below);
        }
        prop_assert!(read(&overlay, 0, SIZE) == model);
        prop_assert!(read(&*base, 0, SIZE) == below);
    }
}

#[test]
fn changes_are_counted_in_blocks_and_forgotten() {
    let (base, bytes) = base(SIZE);
    let layer = Arc::new(Memory::new(SIZE as u64));
    let overlay = Overlay::with_blocks(base.clone(), layer.clone(), BLOCK_SIZE).unwrap();
    assert_eq!((overlay.changed(), overlay.block_size()), (0, BLOCK_SIZE));
    overlay.write(10, b"x", false).unwrap();
    overlay.write(11, b"x", false).unwrap();
    assert_eq!(overlay.changed(), BLOCK as u64);
    overlay.write(SIZE as u64 - 1, b"x", false).unwrap();
    overlay
        .write_zeroes(BLOCK as u64 - 1, 2, ZeroMode::default())
        .unwrap();
    assert_eq!(overlay.changed(), 3 * BLOCK as u64);
    overlay.discard();
    assert_eq!((overlay.changed(), layer.allocated()), (0, 0));
    assert!(read(&overlay, 0, SIZE) == bytes);
    overlay.write(0, b"hello", false).unwrap();
    assert_eq!(overlay.commit(), Ok(BLOCK as u64));
    assert_eq!((overlay.changed(), layer.allocated()), (0, 0));
    assert_eq!(read(&*base, 0, 6), [b"hello", &bytes[5..6]].concat());
    assert_eq!(overlay.commit(), Ok(0));
}

#[test]
fn a_block_that_is_overwritten_as_a_whole_is_not_read() {
    let faults = crate::Faults::new();
    let (base, _) = base(SIZE);
    let base = Arc::new(crate::Faulty::new(base, faults.clone()));
    let overlay = Overlay::with_blocks(base, Arc::new(Memory::new(SIZE as u64)), BLOCK_SIZE);
    let overlay = overlay.unwrap();
    faults.add(crate::Fault::failure(Errno::Io, "a scratch").on(nbd_proto::Command::Read));
    overlay.write(0, &[1; 2 * BLOCK], false).unwrap();
    overlay.write(5, b"x", false).unwrap();
    // A block that cannot be copied is not changed.
    assert_eq!(
        errno(overlay.write(3 * BLOCK as u64, b"x", false)),
        Errno::Io
    );
    assert_eq!(overlay.changed(), 2 * BLOCK as u64);
    assert_eq!(errno(overlay.read(3 * BLOCK as u64, &mut [0])), Errno::Io);
}

#[test]
fn block_status_is_that_of_the_layer_where_it_was_changed() {
    let page = Memory::PAGE;
    let base = Arc::new(Memory::new(8 * page));
    base.write(0, &[1; 64 << 10], false).unwrap();
    let overlay = Overlay::in_memory(base.clone());
    assert_eq!(u64::from(overlay.block_size()), 2 * page);
    assert_eq!(
        status(&overlay, 0, 8 * page),
        [(2 * page, DATA), (6 * page, HOLE)]
    );
    overlay
        .write_zeroes(0, 2 * page, ZeroMode::default())
        .unwrap();
    overlay.write(4 * page, b"x", false).unwrap();
    let expected = [(4 * page, HOLE), (page, DATA), (3 * page, HOLE)];
    assert_eq!(status(&overlay, 0, 8 * page), expected);
    assert!(overlay.finds_zeroes() && !overlay.may_block());
    // Zeroes that have room in the base have none in the layer yet.
    let mode = ZeroMode {
        no_hole: true,
        ..ZeroMode::default()
    };
    base.write_zeroes(6 * page, page, mode).unwrap();
    assert_eq!(
        overlay.quick_allocation(6 * page, page).unwrap().status,
        HOLE
    );
    // Committed zeroes are holes in the base, too.
    overlay.commit().unwrap();
    assert_eq!(status(&*base, 0, 4 * page), [(4 * page, HOLE)]);
    let context = ContextName::allocation_depth();
    let asked = overlay.block_status(&context, 0, 1, &mut |_| ControlFlow::Continue(()));
    assert_eq!(errno(asked), Errno::Inval);
}

#[test]
fn it_advertises_the_same_as_its_layer() {
    let (base, _) = base(SIZE);
    let look = Arc::new(ReadOnly::new(base.clone()));
    let info = export_info(&Overlay::in_memory(look.clone()));
    assert!(!info.is_read_only() && info.can_trim() && info.can_fast_zero() && info.can_fua());
    assert!(info.can_multi_conn() && info.can_flush() && info.can_cache());
    let overlay = Overlay::in_memory(look);
    overlay.write(0, b"x", true).unwrap();
    assert_eq!(errno(overlay.commit()), Errno::Perm);
    assert_eq!(
        (overlay.changed(), read(&overlay, 0, 1)),
        (64 << 10, vec![b'x'])
    );
    for (offset, len) in [(SIZE as u64, 1), (0, SIZE as u64 + 1), (u64::MAX, 1)] {
        assert_eq!(errno(overlay.trim(offset, len, false)), Errno::Inval);
        assert_eq!(
            errno(overlay.write_zeroes(offset, len, ZeroMode::default())),
            Errno::NoSpc
        );
        assert_eq!(errno(overlay.allocation(offset, len)), Errno::Inval);
    }
    assert_eq!(errno(overlay.write(SIZE as u64, b"x", false)), Errno::NoSpc);
    assert_eq!(errno(overlay.read(SIZE as u64, &mut [0])), Errno::Inval);
}

#[test]
fn more_than_the_limit_cannot_be_changed_at_a_time() {
    let (base, mut bytes) = base(SIZE);
    let overlay = Overlay::with_blocks(base, Arc::new(Memory::new(SIZE as u64)), BLOCK_SIZE);
    let overlay = overlay.unwrap().with_limit(2 * BLOCK as u64 + 5);
    overlay.write(0, b"x", false).unwrap();
    bytes[0] = b'x';
    let across = BLOCK as u64 - 1;
    assert_eq!(
        errno(overlay.write(across, &[1; BLOCK + 2], false)),
        Errno::NoSpc
    );
    let zeroes = overlay.write_zeroes(across, BLOCK as u64 + 2, ZeroMode::default());
    assert_eq!(errno(zeroes), Errno::NoSpc);
    assert!(read(&overlay, 0, SIZE) == bytes);
    overlay.write(across, b"yz", false).unwrap();
    assert_eq!(
        errno(overlay.write(SIZE as u64 - 1, b"x", false)),
        Errno::NoSpc
    );
    overlay.write(5, b"x", false).unwrap();
    overlay.discard();
    overlay.write(SIZE as u64 - 1, b"x", false).unwrap();
}

#[test]
fn a_full_layer_leaves_the_old_data() {
    let (base, bytes) = base(SIZE);
    let layer = Arc::new(Memory::new(SIZE as u64).with_limit(0));
    let overlay = Overlay::with_blocks(base, layer, BLOCK_SIZE).unwrap();
    assert_eq!(errno(overlay.write(5, b"x", false)), Errno::NoSpc);
    assert_eq!(overlay.changed(), 0);
    assert!(read(&overlay, 0, SIZE) == bytes);
    // A failed write takes up nothing of the limit.
    assert_eq!(overlay.write_changed().reserve(&(0..6), 6), Some(6));
}

#[test]
fn only_a_layer_that_goes_with_the_base_can_take_its_changes() {
    let memory = |size, (minimum, maximum)| -> Arc<dyn Export> {
        let sizes = BlockSizes::new(minimum, 4096, maximum).unwrap();
        Arc::new(Memory::new(size).with_block_sizes(sizes))
    };
    let any = (1, 1 << 20);
    let base = memory(10_000, any);
    let read_only = Arc::new(Memory::new(10_000).read_only());
    let refused = |layer, block| {
        let overlay = Overlay::with_blocks(base.clone(), layer, block);
        overlay.unwrap_err().to_string()
    };
    for (layer, block, expected) in [
        (memory(9999, any), 4096, "a layer of 9999 bytes cannot take"),
        (read_only, 4096, "the layer is read-only"),
        (
            memory(10_000, any),
            5000,
            "expected a power of two from 1 to 1048576",
        ),
        (
            memory(10_000, (512, 4096)),
            256,
            "a power of two from 512 to 4096",
        ),
        (
            memory(10_000, (512, 4096)),
            8192,
            "a power of two from 512 to 4096",
        ),
    ] {
        let text = refused(layer, block);
        assert!(text.contains(expected), "{text}");
    }
    let overlay = Overlay::new(base, memory(10_000, (512, 5000))).unwrap();
    assert_eq!(overlay.block_size(), 4096);
    assert_eq!(
        overlay.block_sizes(),
        BlockSizes::new(512, 4096, 5000).unwrap()
    );
    let coarse: Arc<dyn Export> =
        Arc::new(Memory::new(10_000).with_block_sizes(BlockSizes::new(8192, 8192, 8192).unwrap()));
    let overlay = Overlay::new(coarse, memory(10_000, (1, 4096)));
    assert!(matches!(overlay, Err(OverlayError::Incompatible { .. })));
}

#[test]
#[expect(
    clippy::disallowed_methods,
    reason = "the threads of a server stand for themselves"
)]
fn threads_that_write_parts_of_one_block_lose_nothing() {
    const THREADS: usize = 4;
    const PART: usize = 16;
    let (base, bytes) = base(SIZE);
    for round in 0..100 {
        let layer = Arc::new(Memory::new(SIZE as u64));
        let overlay = Overlay::with_blocks(base.clone(), layer, BLOCK_SIZE).unwrap();
        let start = std::sync::Barrier::new(THREADS);
        // Each has its own parts of all blocks, all of them at once. Some write a whole block.
        let own = |thread: usize| (0..4 * BLOCK / PART).filter(move |at| at % THREADS == thread);
        std::thread::scope(|scope| {
            for thread in 0..THREADS {
                let (overlay, start) = (&overlay, &start);
                scope.spawn(move || {
                    start.wait();
                    let seed = u8::try_from(thread).unwrap() + 2;
                    // Far apart at first, so that each comes to blocks that are not changed yet.
                    for at in own(thread).step_by(1 + round % 3) {
                        let offset = (at * PART) as u64;
                        overlay.write(offset, &[seed; PART], false).unwrap();
                        assert_eq!(read(overlay, offset, PART), [seed; PART]);
                    }
                    if thread == 0 {
                        overlay.write(4 * BLOCK as u64, &[9; BLOCK], false).unwrap();
                    }
                });
            }
        });
        let mut model = bytes.clone();
        for thread in 0..THREADS {
            for at in own(thread).step_by(1 + round % 3) {
                model[at * PART..][..PART].fill(u8::try_from(thread).unwrap() + 2);
            }
        }
        model[4 * BLOCK..5 * BLOCK].fill(9);
        assert!(read(&overlay, 0, SIZE) == model, "round {round}");
        assert!(read(&*base, 0, SIZE) == bytes);
    }
}
