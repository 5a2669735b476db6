#![expect(
    clippy::disallowed_types,
    clippy::disallowed_methods,
    reason = "the threads that use it are others', and see how long it takes"
)]

use super::*;
use crate::{
    Memory, export_info,
    model::{NO_HOLE, Recorder, errno, read},
};
use std::{thread, time::Instant};

const SIZE: u64 = 1 << 20;

fn disk() -> (Faulty, Faults) {
    let faults = Faults::new();
    (
        Faulty::new(Arc::new(Memory::new(SIZE)), faults.clone()),
        faults,
    )
}

fn scratch() -> Fault {
    Fault::failure(Errno::Io, "a scratch")
}

/// The commands whose calls fail.
fn failing(disk: &Faulty) -> Vec<Command> {
    let buf = &mut [0; 512];
    let context = ContextName::base_allocation();
    let mut each = |_| ControlFlow::Continue(());
    let results = [
        (Command::Read, disk.read(0, buf)),
        (Command::Write, disk.write(0, buf, true)),
        (Command::Flush, disk.flush()),
        (Command::Trim, disk.trim(0, 512, false)),
        (Command::Cache, disk.cache(0, 512)),
        (Command::WriteZeroes, disk.write_zeroes(0, 512, NO_HOLE)),
        (
            Command::BlockStatus,
            disk.block_status(&context, 0, 512, &mut each),
        ),
    ];
    let failed = results.into_iter().filter(|(_, result)| result.is_err());
    failed.map(|(command, _)| command).collect()
}

#[test]
fn without_faults_everything_is_passed_on() {
    let recorder = Arc::new(Recorder::default());
    let disk = Faulty::new(recorder.clone(), Faults::new());
    assert!(disk.may_block() && export_info(&disk).is_rotational());
    let (failures, calls) = recorder.everything(&disk, 100);
    assert_eq!((failures, calls), (vec![], Recorder::all(100)));
}

#[test]
fn a_failing_command_is_not_passed_on() {
    let recorder = Arc::new(Recorder::default());
    let faults = Faults::new();
    let disk = Faulty::new(recorder.clone(), faults.clone());
    // A read meets this fault, which is why nothing is read at once.
    faults.add(scratch().skipping(1));
    assert_eq!(disk.read(0, &mut [0; 8]), Ok(()));
    assert!(!disk.finds_zeroes());
    assert_eq!(failing(&disk).len(), 7);
    assert_eq!(disk.read_now(0, &mut [0; 8]), None);
    faults.clear();
    let (_, calls) = recorder.everything(&disk, 100);
    assert_eq!(calls, Recorder::all(100));
}

#[test]
fn each_command_has_its_own_faults() {
    let (disk, faults) = disk();
    for command in Command::ALL {
        faults.add(scratch().on(*command));
        let expected = match *command {
            Command::Disc | Command::Resize => vec![],
            command => vec![command],
        };
        assert_eq!(failing(&disk), expected);
        faults.clear();
        assert_eq!(failing(&disk), []);
    }
    faults.add(scratch());
    assert_eq!(failing(&disk).len(), 7);
}

#[test]
fn a_fault_in_a_range_hits_requests_that_touch_it() {
    let (disk, faults) = disk();
    faults.add(scratch().touching(4096..8192));
    for (offset, len, expected) in [
        (0, 4096, None),
        (0, 4097, Some(4096)),
        (0, 100_000, Some(4096)),
        (5000, 1, Some(5000)),
        (8191, 2, Some(8191)),
        (8192, 1, None),
    ] {
        let failure = disk.read(offset, &mut vec![0; len]).err();
        let found = failure.map(|failure| {
            assert_eq!(failure.message.as_str(), "a scratch");
            failure.offset
        });
        assert_eq!(found, expected.map(Some));
    }
    disk.flush().unwrap();
    assert_eq!(errno(disk.trim(0, SIZE, false)), Errno::Io);
    faults.clear();
    faults.add(scratch());
    assert_eq!(disk.flush().unwrap_err().offset, None);
}

#[test]
fn a_fault_comes_when_it_is_due_and_goes() {
    let (disk, faults) = disk();
    faults.add(scratch().on(Command::Write).skipping(2).times(3));
    let results = (0..8).map(|_| {
        disk.flush().unwrap();
        disk.write(0, &[0], false).is_err()
    });
    let expected = [false, false, true, true, true, false, false, false];
    assert_eq!(results.collect::<Vec<_>>(), expected);
    assert_eq!(faults.hits(), 3);
}

#[test]
fn holes_are_read_while_reads_may_fail() {
    let (disk, faults) = disk();
    assert!(disk.finds_zeroes());
    faults.add(scratch().on(Command::Write));
    assert!(disk.finds_zeroes());
    assert_eq!(disk.read_now(0, &mut [0; 512]), Some(Ok(())));
    faults.add(scratch().touching(4096..8192).times(1));
    assert!(!disk.finds_zeroes());
    assert_eq!(disk.read_now(0, &mut [0; 512]), Some(Ok(())));
    assert_eq!(disk.read_now(4096, &mut [0; 512]), None);
    assert_eq!(errno(disk.read(4096, &mut [0; 512])), Errno::Io);
    // The fault was met, and will not be again.
    assert!(disk.finds_zeroes());
    assert_eq!(disk.read_now(4096, &mut [0; 512]), Some(Ok(())));
}

#[test]
fn delays_add_up_until_something_fails() {
    let (disk, faults) = disk();
    let some = Duration::from_millis(20);
    faults.add(Fault::delay(some));
    faults.add(scratch().on(Command::Read).delayed(some));
    faults.add(Fault::hang().on(Command::Read));
    let begun = Instant::now();
    assert_eq!(errno(disk.read(0, &mut [0])), Errno::Io);
    assert!(begun.elapsed() >= 2 * some);
    let begun = Instant::now();
    disk.write(0, b"x", false).unwrap();
    assert!(begun.elapsed() >= some);
    assert_eq!(faults.hits(), 2);
}

#[test]
fn hung_requests_go_on_when_the_faults_are_cleared() {
    let (disk, faults) = disk();
    faults.add(Fault::hang().on(Command::Write));
    faults.add(scratch());
    thread::scope(|scope| {
        let writes = [0, 1].map(|at| {
            let disk = &disk;
            scope.spawn(move || disk.write(at, b"x", false))
        });
        while faults.hits() < 2 {
            thread::yield_now();
        }
        // Other requests are not held up.
        assert_eq!(errno(disk.read(0, &mut [0])), Errno::Io);
        assert!(writes.iter().all(|write| !write.is_finished()));
        faults.clear();
        for write in writes {
            write.join().unwrap().unwrap();
        }
    });
    assert_eq!(read(&disk, 0, 3), b"xx\0");
}
