use super::*;
use crate::{ReadOnly, export_info};
use std::{os::unix::fs::OpenOptionsExt, sync::Arc};

#[test]
fn a_read_only_file_is_a_read_only_export() {
    // S-091
    let directory = tempfile::tempdir().unwrap();
    let path = full(&directory, SIZE);
    let opened = fs::File::open(&path).unwrap();
    for export in [
        File::open_read_only(&path).unwrap(),
        File::from_std(opened).unwrap(),
    ] {
        assert!(export_info(&export).is_read_only() && !export_info(&export).can_trim());
        assert_eq!(errno(export.write(0, &[0], false)), Errno::Perm);
        assert_eq!(errno(export.write(0, &[0], true)), Errno::Perm);
        assert_eq!(errno(export.trim(0, 1, false)), Errno::Perm);
        assert_eq!(errno(export.write_zeroes(0, 1, NO_HOLE)), Errno::Perm);
        assert!(read(&export, 0, SIZE) == [7; SIZE]);
        export.flush().unwrap();
    }
}

#[test]
fn it_offers_all_there_is() {
    let directory = tempfile::tempdir().unwrap();
    let path = empty(&directory, 1 << 20);
    let export = File::open(&path).unwrap().with_description("a disk");
    let info = export_info(&export);
    assert!(info.can_flush() && info.can_fua() && info.can_trim() && info.can_fast_zero());
    assert!(info.can_cache() && info.can_multi_conn() && !info.is_read_only());
    assert!(!info.is_rotational());
    assert_eq!(info.description, Some("a disk".into()));
    let sizes = info.block_sizes.unwrap();
    assert_eq!((sizes.minimum(), sizes.maximum()), (1, 32 << 20));
    assert!(export.may_block());
    assert!(format!("{export:?}").contains("size: 1048576"));
}

#[test]
fn the_block_size_of_the_file_system_is_announced_if_it_is_legal() {
    // S-100
    for (preferred, expected) in [
        (0, 512),
        (512, 512),
        (1000, 1024),
        (4096, 4096),
        (131_072, 131_072),
        (1 << 30, 32 << 20),
        (u64::MAX, 32 << 20),
    ] {
        let sizes = block_sizes(preferred);
        assert_eq!(sizes.preferred(), expected);
        assert_eq!((sizes.minimum(), sizes.maximum()), (1, 32 << 20));
    }
}

#[test]
fn only_regular_files_and_block_devices_are_opened() {
    let directory = tempfile::tempdir().unwrap();
    let refused = |path: &Path| {
        let error = File::open_read_only(path).unwrap_err();
        (error.kind(), error.to_string())
    };
    let but = |what| {
        let text = format!("a regular file or a block device can be exported, and not {what}");
        (ErrorKind::InvalidInput, text)
    };
    assert_eq!(refused(directory.path()), but("a directory"));
    assert_eq!(refused(Path::new("/dev/full")), but("a character device"));
    let missing = directory.path().join("missing");
    assert_eq!(refused(&missing).0, ErrorKind::NotFound);
    #[cfg(target_os = "linux")]
    {
        use rustix::fs::{CWD, FileType, Mode, mknodat};
        let pipe = directory.path().join("pipe");
        mknodat(CWD, &pipe, FileType::Fifo, Mode::RUSR, 0).unwrap();
        // The other end of the pipe stays closed, and an open would wait for it.
        assert_eq!(refused(&pipe), but("a pipe"));
    }
}

#[test]
fn how_a_file_is_open_has_to_go_with_an_export() {
    let directory = tempfile::tempdir().unwrap();
    let path = empty(&directory, 1 << 20);
    let refused = |options: &fs::OpenOptions| {
        let error = File::from_std(options.open(&path).unwrap()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        error.to_string()
    };
    assert_eq!(
        refused(fs::OpenOptions::new().write(true)),
        "a file that is open for writing only cannot be exported"
    );
    assert_eq!(
        refused(fs::OpenOptions::new().read(true).append(true)),
        "a file that is open for appending cannot be exported"
    );
    let direct = i32::try_from(host::DIRECT.bits()).unwrap();
    let mut options = fs::OpenOptions::new();
    options.read(true).write(true).custom_flags(direct);
    // Not every file system can do this.
    if direct != 0 && options.open(&path).is_ok() {
        assert_eq!(
            refused(&options),
            "a file that is open without the page cache cannot be exported"
        );
    }
}

#[test]
fn a_locked_file_is_for_one_writer_or_for_readers() {
    let directory = tempfile::tempdir().unwrap();
    let path = empty(&directory, 1 << 20);
    let locked = || File::open(&path).unwrap().locked();
    let locked_read_only = || File::open_read_only(&path).unwrap().locked();
    let writer = locked().unwrap();
    let error = locked().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::WouldBlock);
    assert_eq!(
        locked_read_only().unwrap_err().kind(),
        ErrorKind::WouldBlock
    );
    drop(writer);
    let readers = [locked_read_only().unwrap(), locked_read_only().unwrap()];
    assert_eq!(locked().unwrap_err().kind(), ErrorKind::WouldBlock);
    drop(readers);
    // An earlier user of the descriptor may have changed the size after it was opened.
    let opened = File::open(&path).unwrap();
    shorten(&path, 1000);
    assert_eq!(
        (opened.size(), opened.locked().unwrap().size()),
        (1 << 20, 1000)
    );
}

#[test]
fn a_file_that_has_grown_shows_its_new_size_when_it_is_refreshed() {
    let directory = tempfile::tempdir().unwrap();
    let path = full(&directory, PAGE);
    let file: Arc<dyn Export> = Arc::new(File::open(&path).unwrap());
    let view = ReadOnly::new(Arc::clone(&file));
    for pages in [1, 3, 2] {
        let before = view.size();
        shorten(&path, pages * PAGE_LEN);
        assert_eq!(view.size(), before);
        view.refresh();
        assert_eq!(
            (view.size(), file.size()),
            (pages * PAGE_LEN, pages * PAGE_LEN)
        );
    }
    // An earlier client uses the size that was announced to it.
    let failure = file.read(2 * PAGE_LEN, &mut [0]).unwrap_err();
    assert_eq!(failure.errno, Errno::Io);
    assert_eq!(errno(file.read(3 * PAGE_LEN, &mut [0])), Errno::Inval);
    // The file has grown by a hole, and there was none before.
    assert_eq!(
        status(&*file, 0, 2 * PAGE_LEN),
        [(PAGE_LEN, DATA), (PAGE_LEN, HOLE)]
    );
}
