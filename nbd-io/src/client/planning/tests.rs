use super::*;
use nbd_proto::{BlockSizes, ExportInfo, Failure, HeaderStyle, TransmissionFlags};
use proptest::prelude::*;

pub(super) fn negotiated(size: u64, minimum: u32) -> Negotiated {
    let mut export = ExportInfo::new(size, TransmissionFlags::default());
    let blocks = BlockSizes::new(minimum, 65_536, 1 << 20).unwrap();
    export.block_sizes = Some(blocks);
    Negotiated {
        export,
        mode: HeaderStyle::Extended,
        contexts: Vec::new(),
        blocks,
        encrypted: false,
        tls: None,
        max_read: 32 << 20,
        max_payload: 1 << 20,
        max_zeroes: 1 << 40,
        max_range: 1 << 40,
    }
}

proptest! {
    #[test]
    fn parts_are_a_range_in_order_and_only_its_ends_share_blocks_with_others(
        offset in 0_u64..1 << 20,
        len in 0_u64..1 << 20,
        shift in 0_u32..17,
    ) {
        // C-121
        let negotiated = negotiated(1 << 30, 1 << shift);
        let parts: Vec<_> = negotiated.parts(offset..offset + len).collect();
        prop_assert!(parts.len() <= 3);
        let mut at = offset;
        for part in &parts {
            prop_assert_eq!(part.range.start, at);
            prop_assert!(!part.range.is_empty());
            prop_assert!((part.blocks.start | part.blocks.end) & ((1 << shift) - 1) == 0);
            prop_assert!(part.is_whole() || part.blocks.end - part.blocks.start == 1 << shift);
            prop_assert_eq!(&negotiated.around(&part.range), &part.blocks);
            let place = part.place();
            prop_assert_eq!(place.len() as u64, part.range.end - part.range.start);
            prop_assert_eq!(part.blocks.start + place.start as u64, part.range.start);
            at = part.range.end;
        }
        prop_assert_eq!(at, offset + len);
        let whole = parts.iter().filter(|part| part.is_whole()).count();
        prop_assert!(whole <= 1 && (shift > 0 || whole == parts.len()));
        let all = negotiated.around(&(offset..offset + len));
        if let (Some(first), Some(last)) = (parts.first(), parts.last()) {
            prop_assert_eq!(all, first.blocks.start..last.blocks.end);
        }
    }
}

#[test]
fn only_a_range_that_can_be_shorter_is_tried_again() {
    // C-126
    let negotiated = negotiated(1 << 30, 1);
    let failed = |errno: Errno| Error::Failed {
        command: Command::Trim,
        source: Failure::new(errno),
    };
    let long = 1 << 40;
    for (len, max, error, short) in [
        (1 << 30, long, failed(Errno::Overflow), Some(1 << 20)),
        (1 << 30, long, failed(Errno::Inval), Some(1 << 20)),
        (1 << 30, long, failed(Errno::Io), None),
        (1 << 20, long, failed(Errno::Inval), None),
        (1 << 30, 1 << 20, failed(Errno::Inval), None),
        (1 << 30, long, Error::Unflushed, None),
    ] {
        assert_eq!(negotiated.shorter(len, max, &error), short, "{error:?}");
    }
}

#[test]
fn positions_and_buffers_end_where_the_last_whole_block_does() {
    // C-129
    let negotiated = negotiated(1_048_676, 512);
    assert_eq!(negotiated.size(), 1 << 20);
    let seek = |to| negotiated.seek(7, to).ok();
    assert_eq!(seek(SeekFrom::End(-1)), Some((1 << 20) - 1));
    assert_eq!(seek(SeekFrom::Current(-7)), Some(0));
    assert_eq!(seek(SeekFrom::Current(-8)), None);
    assert_eq!(seek(SeekFrom::Start(u64::MAX)), Some(u64::MAX));
    assert_eq!(negotiated.until_end((1 << 20) - 600, 700), 600);
    assert_eq!(negotiated.until_end(1 << 20, 700), 0);
    assert_eq!(negotiated.until_end(u64::MAX, 700), 0);
    let command = Command::Read;
    assert!(negotiated.range(command, u64::MAX, 0).is_ok());
    assert!(negotiated.range(command, (1 << 20) - 1, 1).is_ok());
    let beyond = negotiated.range(command, (1 << 20) - 1, 2);
    assert!(matches!(beyond, Err(Misuse::Unreachable { .. })));
}
