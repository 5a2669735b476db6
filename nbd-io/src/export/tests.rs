use super::*;
use nbd_proto::CommandFlags;

/// Extents of the given lengths and statuses, reported one by one.
struct Listed(Vec<Extent>);

impl Export for Listed {
    fn size(&self) -> u64 {
        self.0.iter().map(|extent| extent.len).sum()
    }

    fn read(&self, _offset: u64, buf: &mut [u8]) -> Result<(), Failure> {
        buf.fill(0);
        Ok(())
    }

    fn allocation(&self, offset: u64, len: u64) -> Result<Extent, Failure> {
        let mut start = 0;
        for extent in &self.0 {
            if offset < start + extent.len || extent.len == 0 {
                let rest = (start + extent.len).saturating_sub(offset);
                return Ok(Extent {
                    len: rest.min(len),
                    status: extent.status,
                });
            }
            start += extent.len;
        }
        Err(Errno::Io.into())
    }
}

fn listed(extents: &[(u64, u64)]) -> Listed {
    let extents = extents.iter();
    Listed(
        extents
            .map(|&(len, status)| Extent { len, status })
            .collect(),
    )
}

fn status(
    export: &dyn Export,
    offset: u64,
    len: u64,
    most: usize,
) -> Result<Vec<(u64, u64)>, Failure> {
    let mut extents = Vec::new();
    let context = ContextName::base_allocation();
    export.block_status(&context, offset, len, &mut |extent| {
        extents.push((extent.len, extent.status));
        if extents.len() < most {
            ControlFlow::Continue(())
        } else {
            ControlFlow::Break(())
        }
    })?;
    Ok(extents)
}

#[test]
fn block_status_merges_equal_neighbours_and_covers_the_range() {
    let export = listed(&[(10, 0), (20, 0), (5, 3), (7, 3), (1, 0), (9, 1)]);
    assert_eq!(
        status(&export, 0, 52, usize::MAX).unwrap(),
        [(30, 0), (12, 3), (1, 0), (9, 1)]
    );
    assert_eq!(
        status(&export, 29, 15, usize::MAX).unwrap(),
        [(1, 0), (12, 3), (1, 0), (1, 1)]
    );
    assert_eq!(status(&export, 10, 5, usize::MAX).unwrap(), [(5, 0)]);
    assert_eq!(status(&export, 10, 0, usize::MAX).unwrap(), []);
}

#[test]
fn block_status_ends_where_the_caller_has_enough() {
    let export = listed(&[(10, 0), (20, 0), (5, 3), (7, 3), (1, 0), (9, 1)]);
    assert_eq!(status(&export, 0, 52, 1).unwrap(), [(30, 0)]);
    assert_eq!(status(&export, 0, 52, 2).unwrap(), [(30, 0), (12, 3)]);
}

#[test]
fn block_status_asks_a_bounded_number_of_times() {
    let alternating: Vec<_> = (0..2 * MAX_QUERIES as u64).map(|n| (1, n % 2)).collect();
    let export = listed(&alternating);
    let extents = status(&export, 0, export.size(), usize::MAX).unwrap();
    assert_eq!(extents, alternating[..MAX_QUERIES]);
}

#[test]
fn an_empty_extent_is_an_error_and_not_an_endless_loop() {
    let export = listed(&[(10, 0), (0, 1), (5, 3)]);
    let failure = status(&export, 0, 15, usize::MAX).unwrap_err();
    assert_eq!((failure.errno, failure.offset), (Errno::Io, Some(10)));
}

#[test]
fn a_context_that_the_export_does_not_have_is_einval() {
    let context = ContextName::new("qemu:dirty-bitmap:x").unwrap();
    let failure = listed(&[(10, 0)])
        .block_status(&context, 0, 10, &mut |_| panic!("no extent to report"))
        .unwrap_err();
    assert_eq!(failure.errno, Errno::Inval);
}

#[test]
fn the_smallest_back_end_is_coherent() {
    let export: &dyn Export = &listed(&[(10, 0)]);
    let info = export_info(export);
    assert!(info.is_read_only() && !info.can_flush() && !info.can_multi_conn());
    assert_eq!(info.block_sizes, Some(BlockSizes::UNKNOWN));
    assert_eq!(info.description, None);
    assert!(export.may_block() && !export.finds_zeroes());
    assert_eq!(
        export.contexts(),
        [MetaContext::new(ContextName::base_allocation())]
    );
    let errno = |result: Result<(), Failure>| result.unwrap_err().errno;
    assert_eq!(errno(export.write(0, &[0], false)), Errno::Perm);
    assert_eq!(
        errno(export.write_zeroes(0, 1, ZeroMode::default())),
        Errno::Inval
    );
    assert_eq!(errno(export.trim(0, 1, false)), Errno::Inval);
    assert_eq!(errno(export.cache(0, 1)), Errno::Inval);
    assert_eq!(errno(export.flush()), Errno::Inval);
}

#[test]
fn only_consistent_flags_are_advertised() {
    // S-094
    let all = TransmissionFlags::from_bits(0xffff);
    let read_only = coherent(all);
    assert_eq!(read_only.bits(), 0b0_0101_0001_1111);
    let writable = coherent(all.without(TransmissionFlags::READ_ONLY));
    assert_eq!(writable.bits(), 0b0_1101_0111_1101);
    let zeroless = coherent(TransmissionFlags::SEND_FAST_ZERO);
    assert_eq!(zeroless, TransmissionFlags::NONE);
}

#[test]
fn a_description_is_cut_to_the_longest_that_can_be_sent() {
    assert_eq!(sendable(""), None);
    assert_eq!(sendable("\0x"), None);
    assert_eq!(sendable("one\0two"), Some("one".into()));
    let long = format!("a{}", "\u{fc}".repeat(MAX_STRING));
    assert_eq!(sendable(&long).unwrap().as_str().len(), MAX_STRING - 1);
}

#[test]
fn a_size_that_is_not_whole_blocks_is_rounded_down() {
    // S-105
    struct Odd;
    impl Export for Odd {
        fn size(&self) -> u64 {
            1000
        }
        fn read(&self, _offset: u64, _buf: &mut [u8]) -> Result<(), Failure> {
            Ok(())
        }
        fn block_sizes(&self) -> BlockSizes {
            BlockSizes::new(512, 4096, 1 << 20).unwrap()
        }
    }
    assert_eq!(export_info(&Odd).size, 512);
}

#[test]
fn the_mode_of_zeroes_comes_from_the_flags_of_the_command() {
    assert_eq!(ZeroMode::from(CommandFlags::NONE), ZeroMode::default());
    assert_eq!(
        ZeroMode::from(CommandFlags::NO_HOLE | CommandFlags::FAST_ZERO | CommandFlags::FUA),
        ZeroMode {
            no_hole: true,
            fast: true,
            fua: true
        }
    );
}

#[test]
fn ranges_are_checked_without_overflow() {
    assert!(check_range(10, 0, 10, Errno::Inval).is_ok());
    assert!(check_range(10, 10, 0, Errno::Inval).is_ok());
    for (offset, len) in [(0, 11), (10, 1), (11, 0), (u64::MAX, 1), (1, u64::MAX)] {
        assert_eq!(
            check_range(10, offset, len, Errno::NoSpc).map_err(|f| f.errno),
            Err(Errno::NoSpc)
        );
    }
}

#[test]
fn only_exports_that_never_block_are_read_at_once() {
    struct Sevens {
        may_block: bool,
    }
    impl Export for Sevens {
        fn size(&self) -> u64 {
            10
        }
        fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), Failure> {
            check_range(10, offset, buf.len() as u64, Errno::Inval)?;
            buf.fill(7);
            Ok(())
        }
        fn may_block(&self) -> bool {
            self.may_block
        }
    }
    let mut buf = [0; 4];
    let never = Sevens { may_block: false };
    assert_eq!(never.read_now(0, &mut buf), Some(Ok(())));
    assert_eq!(buf, [7; 4]);
    assert!(matches!(never.read_now(8, &mut buf), Some(Err(_))));
    let perhaps = Sevens { may_block: true };
    assert_eq!(perhaps.read_now(0, &mut buf), None);
}

#[test]
fn the_mode_of_zeroes_is_that_of_their_flags() {
    for bits in 0..8 {
        let mode = ZeroMode {
            no_hole: bits & 1 != 0,
            fast: bits & 2 != 0,
            fua: bits & 4 != 0,
        };
        assert_eq!(ZeroMode::from(CommandFlags::from(mode)), mode);
    }
    assert_eq!(CommandFlags::from(ZeroMode::default()), CommandFlags::NONE);
}
