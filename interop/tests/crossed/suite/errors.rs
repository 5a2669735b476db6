//! Errors that fail their request, and nothing else.

use crate::{
    clients::Disk,
    servers::{SIZE, Serving},
    waiting::flight::Request,
};
use interop::{KIB, MIB};
use nbd_io::{Fault, client::Error};
use nbd_proto::{Command, CommandFlags, Errno, HeaderStyle, Misuse};

const NONE: CommandFlags = CommandFlags::NONE;

pub(super) fn misuse_is_not_sent(disk: &impl Disk) {
    for error in [
        disk.read(SIZE - 512, 513).unwrap_err(),
        disk.write(SIZE, &[0], NONE).unwrap_err(),
        disk.trim(u64::MAX, 1, NONE).unwrap_err(),
        disk.write_zeroes(1, SIZE, NONE).unwrap_err(),
        disk.cache(SIZE + 1, 1).unwrap_err(),
    ] {
        let misuse = matches!(error, Error::Misuse(Misuse::OutOfBounds { .. }));
        assert!(misuse, "{error:?}");
    }
    let flags = disk.trim(0, 512, CommandFlags::NO_HOLE).unwrap_err();
    assert!(
        matches!(flags, Error::Misuse(Misuse::Flags { .. })),
        "{flags:?}"
    );
    assert!(!disk.is_lost());
}

pub(super) fn failures_end_nothing(disk: &impl Disk, serving: &Serving) {
    let faults = &serving.faults;
    for (command, errno) in [
        (Command::Read, Errno::Io),
        (Command::Write, Errno::NoSpc),
        (Command::WriteZeroes, Errno::Perm),
        (Command::Trim, Errno::NoMem),
        (Command::Cache, Errno::Inval),
        (Command::Flush, Errno::Io),
        (Command::BlockStatus, Errno::NoMem),
    ] {
        if command == Command::BlockStatus && disk.mode() == HeaderStyle::Simple {
            continue;
        }
        faults.add(Fault::failure(errno, "a scratch").on(command));
        let (offset, len) = (MIB, 4 * KIB);
        let error = match command {
            Command::Read => disk.read(offset, 4096).unwrap_err(),
            Command::Write => disk.write(offset, &[1; 4096], NONE).unwrap_err(),
            Command::WriteZeroes => disk.write_zeroes(offset, len, NONE).unwrap_err(),
            Command::Trim => disk.trim(offset, len, NONE).unwrap_err(),
            Command::Cache => disk.cache(offset, len).unwrap_err(),
            Command::Flush => disk.flush().unwrap_err(),
            _ => disk.block_status(offset, len, NONE).unwrap_err(),
        };
        assert_eq!(error.errno(), Some(errno), "{error:?}");
        faults.clear();
        let Error::Failed {
            command: failed,
            source,
        } = error
        else {
            panic!("{error:?}");
        };
        assert_eq!(failed, command);
        let text = match disk.mode() {
            HeaderStyle::Simple => "",
            _ => "a scratch",
        };
        assert_eq!(source.message.as_str(), text);
    }

    // Of many requests in flight the one at the fault fails, and names its place.
    disk.write(0, &[9; 256 << 10], NONE).unwrap();
    let scratch = Fault::failure(Errno::Io, "a scratch").on(Command::Read);
    faults.add(scratch.touching(100_000..100_001));
    let read = |at: u64| Request::Read {
        offset: at * 16 * KIB,
        len: 16 << 10,
    };
    let answers = disk.together((0..16).map(read).collect(), 16);
    for (at, answer) in answers.into_iter().enumerate() {
        if at != 6 {
            assert_eq!(answer.unwrap(), [9; 16 << 10]);
            continue;
        }
        let error = answer.unwrap_err();
        let Error::Failed { source, .. } = error else {
            panic!("{error:?}");
        };
        assert_eq!(source.errno, Errno::Io);
        let offset = (disk.mode() != HeaderStyle::Simple).then_some(100_000);
        assert_eq!(source.offset, offset);
    }
    faults.clear();
    assert_eq!(disk.read(96 << 10, 16 << 10).unwrap(), [9; 16 << 10]);
    assert!(!disk.is_lost());
}
