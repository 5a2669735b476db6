//! Exports as streams of bytes.

use super::{
    super::{
        Cursor,
        streams::{AsyncReadExt as _, AsyncSeekExt as _, AsyncWriteExt as _, close, copy},
    },
    *,
};
use interop::pattern;
use nbd_io::{Export as _, client::shared::ConnectOptions};
use nbd_proto::CommandFlags;
use std::io::{ErrorKind, SeekFrom};

/// Whole sectors, and not a multiple of any buffer.
const LEN: usize = (5 << 20) + 1536;

/// Exports of [`LEN`] bytes, each with a server of its own.
struct Disks {
    disks: Vec<(Arc<Memory>, String)>,
    stop: Vec<Box<dyn FnOnce()>>,
    _directory: tempfile::TempDir,
}

impl Disks {
    fn new(certificates: &Certificates) -> Self {
        let directory = scratch();
        let mut disks = Vec::new();
        let mut stop: Vec<Box<dyn FnOnce()>> = Vec::new();
        for place in ["unix", "tcp", "tls"] {
            let disk = Arc::new(Memory::new(LEN as u64));
            let tls = ServerTls::from_directory(certificates.dir()).unwrap();
            let server = Server::single(disk.clone()).offer_tls(&tls).unwrap();
            let stopper = server.stopper();
            let (uri, serving) = if place == "unix" {
                let path = directory.path().join("socket");
                let listener = UnixListener::bind(&path).unwrap();
                let serving = thread::spawn(move || server.serve_unix(listener));
                (format!("nbd+unix:///?socket={}", path.display()), serving)
            } else {
                let listener = TcpListener::bind("127.0.0.1:0").unwrap();
                let port = listener.local_addr().unwrap().port();
                let scheme = if place == "tls" { "nbds" } else { "nbd" };
                let serving = thread::spawn(move || server.serve_tcp(listener));
                (format!("{scheme}://localhost:{port}"), serving)
            };
            disks.push((disk, uri));
            stop.push(Box::new(move || {
                stopper.stop();
                serving.join().unwrap().unwrap();
            }));
        }
        Self {
            disks,
            stop,
            _directory: directory,
        }
    }

    fn stop(self) {
        self.stop.into_iter().for_each(|stop| stop());
    }
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
        let disks = Disks::new(&certificates);
        let qemu = QemuNbd::new(Image::raw(LEN as u64)).start();
        let all = pattern(1, LEN as u64);
        disks.disks[0].0.write(0, &all, false).unwrap();
        on_runtime(async |network| {
            let tls = ClientTls::new().directory(certificates.dir()).unwrap();
            let options = ConnectOptions::with_runtime(network).tls(tls);
            let mut places: Vec<_> = disks.disks.iter().map(|(_, uri)| uri.clone()).collect();
            // QEMU's server in the middle, if there is one: to it and on from it.
            places.splice(1..1, qemu.iter().map(|qemu| qemu.uri("")));
            for pair in places.windows(2) {
                let from = Cursor::new(options.connect(&pair[0]).await.unwrap());
                let mut to = Cursor::new(options.connect(&pair[1]).await.unwrap());
                assert_eq!(copy(from, &mut to).await.unwrap(), LEN as u64);
                close(&mut to).await.unwrap();
                to.client().disconnect().await.unwrap();
            }
        });
        for (disk, uri) in &disks.disks {
            assert!(contents(disk) == all, "{uri}");
        }
        disks.stop();
    });
}

#[test]
fn a_cursor_is_a_file_of_fixed_length() {
    limited(|| {
        let certificates = Certificates::new();
        let disks = Disks::new(&certificates);
        on_runtime(async |network| {
            let tls = ClientTls::new().directory(certificates.dir()).unwrap();
            let options = ConnectOptions::with_runtime(network).tls(tls);
            for (disk, uri) in &disks.disks {
                let mut cursor = Cursor::new(options.connect(uri).await.unwrap());
                cursor.write_all(b"start").await.unwrap();
                assert_eq!(cursor.position(), 5);
                let place = cursor.seek(SeekFrom::End(-3)).await.unwrap();
                assert_eq!(place, LEN as u64 - 3);
                let error = cursor.write_all(b"the end").await.unwrap_err();
                assert_eq!(error.kind(), ErrorKind::WriteZero);
                assert_eq!(cursor.read(&mut [0; 9]).await.unwrap(), 0);
                cursor.flush().await.unwrap();
                assert!(contents(disk).starts_with(b"start"));
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
        disks.stop();
    });
}

#[test]
fn futures_of_a_cursor_can_be_dropped_at_any_time() {
    limited(|| {
        let certificates = Certificates::new();
        let disks = Disks::new(&certificates);
        let all = pattern(2, LEN as u64);
        on_runtime(async |network| {
            let tls = ClientTls::new().directory(certificates.dir()).unwrap();
            let options = ConnectOptions::with_runtime(network).tls(tls);
            for (disk, uri) in &disks.disks {
                let mut cursor = Cursor::new(options.connect(uri).await.unwrap());
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
                assert!(contents(disk) == all, "{uri}");
                // What was dropped is behind, and nothing but what was read is passed over.
                cursor.seek(SeekFrom::Start(0)).await.unwrap();
                let mut back: Vec<u8> = Vec::new();
                let mut buf = vec![0; 100_000];
                while back.len() < LEN {
                    let read = cursor.read(&mut buf);
                    if let Some(n) = some_polls(read, polls.next().unwrap()).await {
                        back.extend(&buf[..n.unwrap()]);
                    }
                }
                assert!(back == all, "{uri}");
                let client = cursor.client();
                client
                    .write_zeroes(0, 4096, CommandFlags::NONE)
                    .await
                    .unwrap();
                client.disconnect().await.unwrap();
            }
        });
        disks.stop();
    });
}
