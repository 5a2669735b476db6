//! Exports as streams of bytes.

use super::{
    super::{
        Cursor,
        streams::{AsyncReadExt as _, AsyncSeekExt as _, AsyncWriteExt as _, close, copy},
    },
    disks::{Disk, Way, options, qemu},
    *,
};
use nbd_io::Export as _;
use nbd_proto::CommandFlags;
use std::io::{ErrorKind, SeekFrom};

/// Whole sectors, and not a multiple of any buffer.
const LEN: usize = (5 << 20) + 1536;

fn disks(certificates: &Certificates) -> [Disk; 3] {
    Way::ALL.map(|way| Disk::new(way, certificates, LEN as u64))
}

fn contents(disk: &Memory) -> Vec<u8> {
    let mut all = vec![0; LEN];
    disk.read(0, &mut all).unwrap();
    all
}

#[test]
fn an_export_is_copied_to_another_one_byte_by_byte() {
    limited(|| {
        let certificates = Certificates::new();
        let disks = disks(&certificates);
        let qemu = qemu(Way::Unix, &certificates, LEN as u64, 1);
        let all = pattern(1, LEN as u64);
        disks[0].memory.write(0, &all, false).unwrap();
        on_runtime(async |network| {
            let options = options(&network, &certificates);
            let mut places: Vec<_> = disks.iter().map(|disk| disk.uri.clone()).collect();
            // QEMU's server in the middle, if there is one: to it and on from it.
            places.splice(1..1, qemu.iter().map(|(_, uri)| uri.clone()));
            for pair in places.windows(2) {
                let from = Cursor::new(options.connect(&pair[0]).await.unwrap().into());
                let mut to = Cursor::new(options.connect(&pair[1]).await.unwrap().into());
                assert_eq!(copy(from, &mut to).await.unwrap(), LEN as u64);
                close(&mut to).await.unwrap();
                to.client().disconnect().await.unwrap();
            }
        });
        for disk in &disks {
            assert!(contents(&disk.memory) == all, "{}", disk.uri);
        }
        disks.into_iter().for_each(Disk::stop);
    });
}

#[test]
fn a_cursor_ends_before_an_incomplete_block() {
    // C-129
    limited(|| {
        let server = Nbdkit::new("memory")
            .param("size=1048676")
            .filter("blocksize-policy")
            .param("blocksize-error-policy=error")
            .param("blocksize-minimum=512");
        let Some(server) = server.start() else { return };
        on_runtime(async |network| {
            let options = ConnectOptions::with_runtime(network);
            let mut cursor = Cursor::new(options.connect(&server.uri("")).await.unwrap().into());
            assert_eq!(cursor.seek(SeekFrom::End(-100)).await.unwrap(), SIZE - 100);
            let error = cursor.write_all(&[7; 200]).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::WriteZero);
            cursor.flush().await.unwrap();
            cursor.seek(SeekFrom::Start(0)).await.unwrap();
            let mut all = Vec::new();
            cursor.read_to_end(&mut all).await.unwrap();
            let (zeroes, sevens) = all.split_at(all.len() - 100);
            assert_eq!(all.len() as u64, SIZE);
            assert!(zeroes.iter().all(|byte| *byte == 0) && sevens == [7; 100]);
            cursor.client().disconnect().await.unwrap();
        });
    });
}

#[test]
fn a_cursor_is_a_file_of_fixed_length() {
    limited(|| {
        let certificates = Certificates::new();
        let disks = disks(&certificates);
        on_runtime(async |network| {
            let options = options(&network, &certificates);
            for disk in &disks {
                let mut cursor = Cursor::new(options.connect(&disk.uri).await.unwrap().into());
                cursor.write_all(b"start").await.unwrap();
                assert_eq!(cursor.position(), 5);
                let place = cursor.seek(SeekFrom::End(-3)).await.unwrap();
                assert_eq!(place, LEN as u64 - 3);
                let error = cursor.write_all(b"the end").await.unwrap_err();
                assert_eq!(error.kind(), ErrorKind::WriteZero);
                assert_eq!(cursor.read(&mut [0; 9]).await.unwrap(), 0);
                cursor.flush().await.unwrap();
                assert!(contents(&disk.memory).starts_with(b"start"));
                cursor.seek(SeekFrom::Current(-3)).await.unwrap();
                let mut rest = Vec::new();
                cursor.read_to_end(&mut rest).await.unwrap();
                assert_eq!(rest, b"the");
                assert!(cursor.seek(SeekFrom::Current(-(1 << 40))).await.is_err());
                cursor.seek(SeekFrom::Start(2)).await.unwrap();
                let mut three = [0; 3];
                cursor.read_exact(&mut three).await.unwrap();
                assert_eq!((&three, cursor.position()), (b"art", 5));
                close(&mut cursor).await.unwrap();
                cursor.client().disconnect().await.unwrap();
                let error = cursor.read(&mut three).await.unwrap_err();
                assert_eq!(error.kind(), ErrorKind::NotConnected);
            }
        });
        disks.into_iter().for_each(Disk::stop);
    });
}

#[test]
fn futures_of_a_cursor_can_be_dropped_at_any_time() {
    limited(|| {
        let certificates = Certificates::new();
        let disks = disks(&certificates);
        let all = pattern(2, LEN as u64);
        on_runtime(async |network| {
            let options = options(&network, &certificates);
            for disk in &disks {
                let mut cursor = Cursor::new(options.connect(&disk.uri).await.unwrap().into());
                let mut polls = (0..5).cycle();
                let mut at = 0;
                while at < LEN {
                    let len = (LEN - at).min(100_000);
                    let write = cursor.write(&all[at..at + len]);
                    let n = some_polls(write, polls.next().unwrap()).await;
                    at += n.map_or(0, Result::unwrap);
                    drop(some_polls(cursor.flush(), polls.next().unwrap() / 2).await);
                    assert_eq!(cursor.position(), at as u64);
                }
                close(&mut cursor).await.unwrap();
                assert!(contents(&disk.memory) == all, "{}", disk.uri);
                // Dropped operations are over, and only bytes that were read are passed over.
                cursor.seek(SeekFrom::Start(0)).await.unwrap();
                let mut back: Vec<u8> = Vec::new();
                let mut buf = vec![0; 100_000];
                while back.len() < LEN {
                    let read = cursor.read(&mut buf);
                    if let Some(n) = some_polls(read, polls.next().unwrap()).await {
                        back.extend(&buf[..n.unwrap()]);
                    }
                }
                assert!(back == all, "{}", disk.uri);
                let client = cursor.client();
                client
                    .write_zeroes(0, 4096, CommandFlags::NONE)
                    .await
                    .unwrap();
                client.disconnect().await.unwrap();
            }
        });
        disks.into_iter().for_each(Disk::stop);
    });
}
