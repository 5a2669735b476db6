//! Messages of the transmission phase.

use crate::{hex, written};
use nbd_proto::{
    Command, CommandFlags, HeaderStyle,
    wire::{
        BlockStatusFilter, ChunkHeader, Descriptor, ErrorChunk, ReplyFlags, ReplyHeader, ReplyType,
        RequestHeader,
    },
};

const COOKIE: u64 = 0x0123_4567_89ab_cdef;

#[test]
fn requests() {
    for (command, code, flags, bits, offset, len) in [
        (
            Command::Read,
            0,
            CommandFlags::DF,
            "0004",
            0x1_0000_0000,
            0x200,
        ),
        (Command::Write, 1, CommandFlags::FUA, "0001", 512, 0x1000),
        (Command::Disc, 2, CommandFlags::NONE, "0000", 0, 0),
        (Command::Flush, 3, CommandFlags::NONE, "0000", 0, 0),
        (Command::Trim, 4, CommandFlags::NONE, "0000", 0, 0xffff_fe00),
        (Command::Cache, 5, CommandFlags::NONE, "0000", 1024, 0x400),
        (
            Command::WriteZeroes,
            6,
            CommandFlags::NO_HOLE | CommandFlags::FAST_ZERO,
            "0012",
            0,
            512,
        ),
        (
            Command::BlockStatus,
            7,
            CommandFlags::REQ_ONE,
            "0008",
            4096,
            65536,
        ),
        (Command::Resize, 8, CommandFlags::NONE, "0000", 1 << 30, 0),
        (
            Command::Other(99),
            99,
            CommandFlags::PAYLOAD_LEN,
            "0020",
            0,
            1,
        ),
    ] {
        let cookie = COOKIE;
        let header = RequestHeader {
            flags,
            command,
            cookie,
            offset,
            len,
        };
        let compact = hex(&format!(
            "2560 9513 {bits} {code:04x} {COOKIE:016x} {offset:016x} {len:08x}"
        ));
        let extended = hex(&format!(
            "21e4 1c71 {bits} {code:04x} {COOKIE:016x} {offset:016x} {len:016x}"
        ));
        for (mode, bytes, other) in [
            (HeaderStyle::Simple, &compact, &extended),
            (HeaderStyle::Structured, &compact, &extended),
            (HeaderStyle::Extended, &extended, &compact),
        ] {
            assert_eq!(bytes.len(), mode.request_len());
            assert_eq!(header.encode(mode).as_bytes(), bytes);
            assert_eq!(RequestHeader::decode(mode, bytes), Some(header));
            assert_eq!(RequestHeader::decode(mode, other), None);
            assert_eq!(RequestHeader::decode(mode, &bytes[1..]), None);
        }
    }
    // A length of 64 bits, in the only layout that has room for it.
    let long = RequestHeader {
        flags: CommandFlags::NONE,
        command: Command::WriteZeroes,
        cookie: 1,
        offset: 0,
        len: 1 << 40,
    };
    let bytes =
        hex("21e4 1c71 0000 0006 0000 0000 0000 0001 0000 0000 0000 0000 0000 0100 0000 0000");
    assert_eq!(long.encode(HeaderStyle::Extended).as_bytes(), bytes);
    assert_eq!(
        RequestHeader::decode(HeaderStyle::Extended, &bytes),
        Some(long)
    );
}

#[test]
fn simple_replies() {
    for error in [0, 1, 5, 12, 22, 28, 75, 95, 108, u32::MAX] {
        let header = ReplyHeader::Simple {
            error,
            cookie: COOKIE,
        };
        let bytes = hex(&format!("6744 6698 {error:08x} {COOKIE:016x}"));
        for mode in [HeaderStyle::Simple, HeaderStyle::Structured] {
            assert_eq!(ReplyHeader::len(mode, 0x6744_6698), Some(16));
            assert_eq!(header.encode(mode).as_bytes(), bytes);
            assert_eq!(ReplyHeader::decode(mode, &bytes), Some(header));
            assert_eq!(ReplyHeader::decode(mode, &bytes[..15]), None);
        }
        assert_eq!(ReplyHeader::len(HeaderStyle::Extended, 0x6744_6698), None);
        assert_eq!(ReplyHeader::decode(HeaderStyle::Extended, &bytes), None);
    }
}

#[test]
fn chunks() {
    for (reply, code) in [
        (ReplyType::None, "0000"),
        (ReplyType::OffsetData, "0001"),
        (ReplyType::OffsetHole, "0002"),
        (ReplyType::BlockStatus, "0005"),
        (ReplyType::BlockStatusExt, "0006"),
        (ReplyType::Error, "8001"),
        (ReplyType::ErrorOffset, "8002"),
        (ReplyType::Other(0x8063), "8063"),
    ] {
        for (flags, bits) in [(ReplyFlags::NONE, "0000"), (ReplyFlags::DONE, "0001")] {
            let chunk = |offset| {
                let cookie = COOKIE;
                ReplyHeader::Chunk(ChunkHeader {
                    flags,
                    reply,
                    cookie,
                    offset,
                    len: 12,
                })
            };
            let structured = hex(&format!("668e 33ef {bits} {code} {COOKIE:016x} 0000 000c"));
            assert_eq!(
                ReplyHeader::len(HeaderStyle::Structured, 0x668e_33ef),
                Some(20)
            );
            assert_eq!(
                chunk(0).encode(HeaderStyle::Structured).as_bytes(),
                structured
            );
            assert_eq!(
                ReplyHeader::decode(HeaderStyle::Structured, &structured),
                Some(chunk(0))
            );
            let extended = hex(&format!(
                "6e8a 278c {bits} {code} {COOKIE:016x} 0000 0000 0000 0200 0000 0000 0000 000c"
            ));
            assert_eq!(
                ReplyHeader::len(HeaderStyle::Extended, 0x6e8a_278c),
                Some(32)
            );
            assert_eq!(
                chunk(512).encode(HeaderStyle::Extended).as_bytes(),
                extended
            );
            assert_eq!(
                ReplyHeader::decode(HeaderStyle::Extended, &extended),
                Some(chunk(512))
            );

            assert_eq!(ReplyHeader::decode(HeaderStyle::Simple, &structured), None);
            assert_eq!(
                ReplyHeader::decode(HeaderStyle::Structured, &extended),
                None
            );
            assert_eq!(
                ReplyHeader::decode(HeaderStyle::Extended, &structured),
                None
            );
        }
    }
}

#[test]
fn extents() {
    let narrow = Descriptor {
        len: 4096,
        status: 3,
    };
    let bytes = hex("0000 1000 0000 0003");
    assert_eq!(Descriptor::wire_len(HeaderStyle::Structured), bytes.len());
    assert_eq!(
        written(|out| narrow.encode(HeaderStyle::Structured, out)),
        bytes
    );
    assert_eq!(
        Descriptor::decode(HeaderStyle::Structured, &bytes),
        Some(narrow)
    );
    let wide = Descriptor {
        len: 1 << 40,
        status: 1 << 32,
    };
    let bytes = hex("0000 0100 0000 0000 0000 0001 0000 0000");
    assert_eq!(Descriptor::wire_len(HeaderStyle::Extended), bytes.len());
    assert_eq!(
        written(|out| wide.encode(HeaderStyle::Extended, out)),
        bytes
    );
    assert_eq!(
        Descriptor::decode(HeaderStyle::Extended, &bytes),
        Some(wide)
    );
    assert_eq!(Descriptor::decode(HeaderStyle::Extended, &bytes[..8]), None);
}

#[test]
fn payloads_of_error_chunks() {
    for (reply, offset, message, bytes) in [
        (ReplyType::Error, None, "", "0000 0005 0000"),
        (
            ReplyType::Error,
            None,
            "disk full",
            "0000 001c 0009 'disk full'",
        ),
        (
            ReplyType::ErrorOffset,
            Some(0x1000),
            "",
            "0000 0005 0000 0000 0000 0000 1000",
        ),
        (
            ReplyType::ErrorOffset,
            Some(0x1000),
            "disk on fire",
            "0000 0005 000c 'disk on fire' 0000 0000 0000 1000",
        ),
    ] {
        let bytes = hex(bytes);
        let error = u32::from(bytes[3]);
        let message = message.as_bytes();
        let chunk = ErrorChunk {
            error,
            message,
            offset,
        };
        assert_eq!(chunk.wire_len(), bytes.len());
        assert_eq!(written(|out| chunk.encode(out)), bytes);
        assert_eq!(ErrorChunk::decode(reply, &bytes), Some(chunk));
        assert_eq!(ErrorChunk::decode(reply, &bytes[..bytes.len() - 1]), None);
    }
}

#[test]
fn the_payload_of_a_filtered_block_status() {
    let bytes = hex("00 00 00 02 00 00 00 00  00 00 00 01  ff ff ff ff");
    let encoded = written(|out| BlockStatusFilter::encode(1 << 33, &[1, u32::MAX], out));
    assert_eq!(encoded, bytes);
    let filter = BlockStatusFilter::decode(&bytes).expect("it is whole");
    assert_eq!(filter.len, 1 << 33);
    assert_eq!(filter.ids().collect::<Vec<_>>(), [1, u32::MAX]);
    for cut in [0, 7, 8, 9, 15] {
        assert_eq!(
            BlockStatusFilter::decode(&bytes[..cut]),
            None,
            "{cut} bytes"
        );
    }
}
