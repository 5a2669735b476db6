//! Every command, in every layout of replies, over every kind of transport.

use super::{
    Server,
    support::{Running, modes, pattern, soon},
};
use nbd_blocking::{
    BlockSizes, Client, CommandFlags, ConnectOptions, Errno, Error, HeaderStyle, exports::Failure,
};
use nbd_io::{Export, Memory};
use nbd_proto::TransmissionFlags;
use std::sync::Arc;

const SIZE: u64 = 64 << 20;

fn memory() -> Server {
    Server::single(Arc::new(Memory::new(SIZE).with_description("a disk")))
}

/// Compares a client's view with a model of the first 8 MiB.
pub(crate) fn exercise(client: &Client) {
    let mut model = vec![0; 8 << 20];
    let whole = |model: &[u8]| {
        let mut read = vec![1; model.len()];
        client.read_exact_at(&mut read, 0).unwrap();
        assert!(read == model);
    };
    whole(&model);
    for (at, len) in [
        (0, 1),
        (511, 3),
        (4096, 4096),
        (100_000, 70_000),
        (1 << 20, 3 << 20),
        ((8 << 20) - 1, 1),
    ] {
        let data = pattern(len, len as u32);
        client.write_all_at(&data, at as u64).unwrap();
        model[at..at + len].copy_from_slice(&data);
        let mut read = vec![0; len];
        client.read_exact_at(&mut read, at as u64).unwrap();
        assert!(read == data);
    }
    whole(&model);

    let fua = CommandFlags::FUA;
    client.write_all_at_with(&[7; 512], 512, fua).unwrap();
    model[512..1024].fill(7);
    client
        .write_zeroes(1 << 20, 303_104, CommandFlags::NONE)
        .unwrap();
    model[1 << 20..(1 << 20) + 303_104].fill(0);
    client
        .write_zeroes(2 << 20, 1 << 20, CommandFlags::NO_HOLE | fua)
        .unwrap();
    model[2 << 20..3 << 20].fill(0);
    client
        .write_zeroes(3 << 20, 65_536, CommandFlags::FAST_ZERO)
        .unwrap();
    model[3 << 20..(3 << 20) + 65_536].fill(0);
    client.flush().unwrap();
    client.cache(0, 1 << 20).unwrap();
    whole(&model);

    client.trim(4096, 4096, fua).unwrap();
    model[4096..8192].fill(0);
    let mut read = vec![0; 4096];
    client.read_exact_at(&mut read, 8192).unwrap();
    client.write_zeroes(4096, 4096, CommandFlags::NONE).unwrap();
    whole(&model);

    if client.mode() != HeaderStyle::Simple {
        let df = CommandFlags::DF;
        let mut read = vec![1; 1 << 20];
        client.read_exact_at_with(&mut read, 1 << 19, df).unwrap();
        assert!(read == model[1 << 19..(1 << 20) + (1 << 19)]);
        status(client, &model);
    }
}

/// Ranges that are reported as zeroes have to be zeroes, and the end of the export has to be.
fn status(client: &Client, model: &[u8]) {
    let mut at = 0;
    let mut zeroes = 0;
    for run in client.extents(0..client.size()) {
        let run = run.unwrap();
        assert_eq!(run.offset, at);
        if run.status == [3] {
            zeroes += run.len;
            let start = (at as usize).min(model.len());
            let end = ((at + run.len) as usize).min(model.len());
            assert!(model[start..end].iter().all(|byte| *byte == 0));
        }
        at += run.len;
    }
    assert_eq!(at, client.size());
    assert!(zeroes >= client.size() - model.len() as u64);
    let one = client
        .block_status(0, client.size(), CommandFlags::REQ_ONE)
        .unwrap();
    assert_eq!((one.len(), one[0].extents.len()), (1, 1));
}

#[test]
fn every_command_works_over_unix_sockets() {
    soon(|| {
        for (options, mode) in modes().iter().zip([
            HeaderStyle::Simple,
            HeaderStyle::Structured,
            HeaderStyle::Extended,
        ]) {
            let running = Running::new(memory());
            let client = running.connect(options);
            assert_eq!((client.mode(), client.size()), (mode, SIZE));
            assert_eq!(
                client.export().description.as_ref().unwrap().as_str(),
                "a disk"
            );
            exercise(&client);
            client.disconnect().unwrap();
            assert_eq!(running.stop(), ["the client disconnected"]);
        }
    });
}

#[test]
fn every_command_works_over_tcp() {
    // S-001
    soon(|| {
        let running = Running::new(memory());
        for options in modes() {
            let client = options.connect_over(running.raw_tcp(), None).unwrap();
            exercise(&client);
            client
                .write_zeroes(0, client.size(), CommandFlags::NONE)
                .unwrap();
            client.disconnect().unwrap();
        }
        assert_eq!(running.stop(), ["the client disconnected"; 3]);
    });
}

#[test]
fn the_longest_payload_goes_both_ways() {
    soon(|| {
        let running = Running::new(memory());
        for options in modes() {
            let client = running.connect(&options);
            let data = pattern(32 << 20, 1);
            client.write_all_at(&data, 4096).unwrap();
            let mut read = vec![0; 32 << 20];
            client.read_exact_at(&mut read, 4096).unwrap();
            assert!(read == data);
        }
        running.stop();
    });
}

#[test]
fn many_requests_in_flight_are_all_answered() {
    soon(|| {
        for options in modes() {
            let running = Running::new(memory());
            let client = running.connect(&options);
            let mut queue = client.queue();
            let blocks = 2000_u32;
            for block in 0..blocks {
                let len = if block % 100 == 0 { 200_000 } else { 4096 };
                let data = pattern(len, block);
                let at = u64::from(block) * 4096;
                queue.write(data, at, CommandFlags::NONE).unwrap();
                // Later writes go over the long ones, and so have to come later.
                if block % 100 == 0 {
                    while let Some(done) = queue.complete().unwrap() {
                        done.into_buffer().unwrap();
                    }
                }
            }
            while let Some(done) = queue.complete().unwrap() {
                done.into_buffer().unwrap();
            }
            for block in 0..blocks {
                queue.read(vec![0; 4096], u64::from(block) * 4096).unwrap();
            }
            let mut seen = 0;
            let expected: std::collections::HashSet<Vec<u8>> = (0..blocks)
                .map(|block| {
                    let len = if block % 100 == 0 { 200_000 } else { 4096 };
                    let mut data = pattern(len, block);
                    data.truncate(4096);
                    data
                })
                .collect();
            while let Some(done) = queue.complete().unwrap() {
                assert!(expected.contains(&done.into_buffer().unwrap()));
                seen += 1;
            }
            assert_eq!(seen, blocks);
            running.stop();
        }
    });
}

#[test]
fn nothing_changes_a_read_only_export() {
    // S-091, S-160
    soon(|| {
        let running = Running::new(Server::single(Arc::new(Memory::new(SIZE).read_only())));
        for options in modes() {
            let client = running.connect(&options);
            assert!(client.export().is_read_only());
            assert!(client.write_all_at(&[1; 70_000], 0).is_err());
            assert!(client.trim(0, 512, CommandFlags::NONE).is_err());
            let mut read = [1; 512];
            client.read_exact_at(&mut read, 0).unwrap();
            assert_eq!(read, [0; 512]);
        }
        running.stop();
    });
}

/// Fails every command, each with an error of its own.
struct Broken;

impl Export for Broken {
    fn size(&self) -> u64 {
        SIZE
    }

    fn flags(&self) -> TransmissionFlags {
        TransmissionFlags::SEND_FLUSH
            | TransmissionFlags::SEND_WRITE_ZEROES
            | TransmissionFlags::SEND_FAST_ZERO
    }

    fn read(&self, offset: u64, _: &mut [u8]) -> Result<(), Failure> {
        Err(Failure {
            message: "the head has crashed".into(),
            offset: Some(offset),
            ..Errno::Io.into()
        })
    }

    fn write(&self, _: u64, _: &[u8], _: bool) -> Result<(), Failure> {
        Err(Errno::NoSpc.into())
    }

    fn write_zeroes(&self, _: u64, _: u64, _: nbd_io::ZeroMode) -> Result<(), Failure> {
        Err(Errno::NotSup.into())
    }

    fn flush(&self) -> Result<(), Failure> {
        Err(Errno::Overflow.into())
    }

    fn allocation(&self, _: u64, _: u64) -> Result<nbd_proto::meta::Extent, Failure> {
        Err(Errno::Io.into())
    }

    fn finds_zeroes(&self) -> bool {
        true
    }
}

#[test]
fn a_failure_is_reported_and_the_connection_goes_on() {
    // S-202, S-227, S-228, S-229
    soon(|| {
        let running = Running::new(Server::single(Arc::new(Broken)));
        for options in modes() {
            let client = running.connect(&options);
            let errno = |result: Result<(), Error>| result.unwrap_err().errno().unwrap();
            let failed = client.read_exact_at(&mut [0; 512], 4096).unwrap_err();
            assert_eq!(failed.errno(), Some(Errno::Io));
            if let Error::Failed { source, .. } = failed
                && client.mode() != HeaderStyle::Simple
            {
                assert_eq!(source.message.as_str(), "the head has crashed");
                assert_eq!(source.offset, Some(4096));
            }
            assert_eq!(errno(client.write_all_at(&[0; 100_000], 0)), Errno::NoSpc);
            let fast = CommandFlags::FAST_ZERO;
            assert_eq!(errno(client.write_zeroes(0, 512, fast)), Errno::NotSup);
            let slow = CommandFlags::NONE;
            assert_eq!(errno(client.write_zeroes(0, 512, slow)), Errno::Inval);
            assert_eq!(errno(client.flush()), Errno::Inval);
            if client.mode() != HeaderStyle::Simple {
                assert!(client.block_status(0, 512, CommandFlags::NONE).is_err());
            }
            client.disconnect().unwrap();
        }
        assert_eq!(running.stop(), ["the client disconnected"; 3]);
    });
}

#[test]
fn block_sizes_are_announced_and_enforced() {
    soon(|| {
        let sizes = BlockSizes::new(4096, 65_536, 1 << 20).unwrap();
        let disk = Memory::new(SIZE + 1000).with_block_sizes(sizes);
        let running = Running::new(Server::single(Arc::new(disk)));
        for options in modes() {
            let client = running.connect(&options);
            assert_eq!((client.size(), client.block_sizes()), (SIZE, sizes));
            client.write_zeroes(0, SIZE, CommandFlags::NONE).unwrap();
            exercise(&client);
        }
        // S-086: a client that did not ask for block sizes is not refused, and gets unaligned
        // requests carried out.
        let options = ConnectOptions::new()
            .extended_headers(false)
            .structured_replies(false);
        let client = running.connect(&options);
        client.read_exact_at(&mut [0; 8192], 4096).unwrap();
        running.stop();
    });
}
