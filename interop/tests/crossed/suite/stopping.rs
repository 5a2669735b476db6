//! The end of a server that is in use.

use crate::{
    clients::{Disk, Kind, Wanted},
    servers::Serving,
    waiting::flight::Request,
};
use interop::{MIB, assert_same};
use nbd_io::{Fault, client::Error};
use nbd_proto::{Command, CommandFlags, Errno, HeaderStyle};
use std::{
    ops::RangeFrom,
    sync::mpsc::{self, Sender},
    thread,
};

const NONE: CommandFlags = CommandFlags::NONE;
const BLOCK: u64 = 512;

/// A place where a write takes as long as the test wants.
const SLOW: u64 = 7 * MIB;

/// Stops the server while it is in use, and compares acknowledged writes with the contents. Returns
/// the number of connections.
pub(super) fn nothing_is_lost_when_the_server_stops<K: Kind>(
    client: &K,
    serving: &Serving,
) -> usize {
    let mode = HeaderStyle::Extended;
    let connect = |connections| {
        let wanted = Wanted { mode, connections };
        client.connect(&serving.uri("disk"), wanted).unwrap()
    };
    let (several, single) = (connect(3), connect(1));
    let slow = Fault::hang().on(Command::Write);
    serving.faults.add(slow.touching(SLOW..SLOW + 1));
    let begun = serving.faults.hits() + 1;
    let _before = serving.written();
    let (sender, receiver) = mpsc::channel();
    let mut written = thread::scope(|scope| {
        let (several, single) = (&several, &single);
        let slow = scope.spawn(|| single.write(SLOW, &block(SLOW), NONE));
        while serving.faults.hits() < begun {
            thread::yield_now();
        }
        let writing = scope.spawn(move || write_until_refused(several, &sender));
        receiver.recv().unwrap();
        serving.stop();
        // New requests are refused, and begun ones are finished.
        let refused = single.write_alone(SLOW - BLOCK, &[1; 512]).unwrap_err();
        assert_eq!(refused.errno(), Some(Errno::Shutdown), "{refused:?}");
        serving.faults.clear();
        slow.join().unwrap().unwrap();
        writing.join().unwrap()
    });
    written.push(SLOW);
    let contents = serving.spy.contents();
    for offset in &written {
        let at = usize::try_from(*offset).unwrap();
        assert_same(&contents[at..at + 512], &block(*offset), *offset);
    }
    // The server has reported every write that it has carried out.
    written.sort_unstable();
    assert_eq!(serving.written(), written);

    for disk in [several, single] {
        // A client may have disconnected itself after ESHUTDOWN.
        let _ = disk.disconnect();
        assert!(disk.is_lost());
        assert!(disk.read(0, 512).unwrap_err().is_lost());
    }
    4
}

/// Writes one block after the other, many at once, and returns the offsets of the acknowledged
/// ones.
fn write_until_refused(disk: &impl Disk, sender: &Sender<()>) -> Vec<u64> {
    let mut written = Vec::new();
    let offsets: RangeFrom<u64> = 0..;
    let mut offsets = offsets.map(|number| number * BLOCK);
    loop {
        let batch: Vec<u64> = offsets.by_ref().take(32).collect();
        assert!(batch[31] < SLOW - BLOCK, "the server does not stop");
        let write = |offset: &u64| Request::Write {
            offset: *offset,
            data: block(*offset),
            flags: NONE,
        };
        let answers = disk.together(batch.iter().map(write).collect(), 8);
        assert_eq!(answers.len(), batch.len());
        let mut refused = false;
        for (offset, answer) in batch.into_iter().zip(answers) {
            match answer {
                Ok(_) => written.push(offset),
                Err(error) => {
                    let shuts_down = error.errno() == Some(Errno::Shutdown);
                    assert!(shuts_down || matches!(error, Error::Lost(_)), "{error:?}");
                    refused = true;
                }
            }
        }
        if refused {
            return written;
        }
        // The receiver waits for the first message only.
        let _ = sender.send(());
    }
}

fn block(offset: u64) -> Vec<u8> {
    (offset + 1).to_be_bytes().repeat(64)
}
