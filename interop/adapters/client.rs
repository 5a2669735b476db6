//! The client, with our server and with those of others.

use super::*;
use nbd_proto::CommandFlags;

/// Uses an export of [`SIZE`] bytes, many requests at a time, and verifies the data.
async fn exercise<R: Network>(client: &Client<R>) {
    assert_eq!(client.size(), SIZE);
    let block = |at: u64| vec![u8::try_from(at % 251).unwrap(); 4096];
    let mut writes = Vec::new();
    for at in 0..64 {
        writes.push(Box::pin(client.write(block(at), at * 4096)));
    }
    for write in writes {
        write.await.unwrap();
    }
    client.flush().await.unwrap();
    let mut reads: Vec<_> = (0..64)
        .map(|at| Box::pin(client.read(at * 4096, 4096)))
        .collect();
    // Some futures are dropped, which cancels no other request.
    for at in (0..64).rev().step_by(2) {
        drop(reads.remove(at));
    }
    for (at, read) in (0..64).step_by(2).zip(reads) {
        assert_eq!(read.await.unwrap(), block(at));
    }
    client.write(vec![7; 300_000], 1000).await.unwrap();
    assert!(client.read(1000, 300_000).await.unwrap() == vec![7; 300_000]);
    client
        .write_zeroes(0, SIZE, CommandFlags::NONE)
        .await
        .unwrap();
    assert!(
        client
            .read(0, 1 << 20)
            .await
            .unwrap()
            .iter()
            .all(|byte| *byte == 0)
    );
    let past = client.read(SIZE, 1).await.unwrap_err();
    assert!(matches!(past, nbd_io::client::Error::Misuse(_)), "{past:?}");
}

#[test]
fn a_client_uses_an_export_over_every_kind_of_connection() {
    limited(|| {
        let certificates = Certificates::new();
        let dir = scratch();
        let path = dir.path().join("socket");
        let tls = ServerTls::from_directory(certificates.dir()).unwrap();
        let server = server().offer_tls(&tls).unwrap();
        let stopper = server.stopper();
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = tcp.local_addr().unwrap().port();
        let unix = UnixListener::bind(&path).unwrap();
        let other = server.clone();
        let serving = [
            thread::spawn(move || server.serve(nbd_blocking::Listener::from_std(tcp).unwrap())),
            thread::spawn(move || other.serve(nbd_blocking::Listener::from_std(unix).unwrap())),
        ];
        on_runtime(async |network| {
            let client_tls = ClientTls::new().directory(certificates.dir()).unwrap();
            let options = ConnectOptions::with_runtime(network).tls(client_tls);
            for (address, encrypted) in [
                (format!("nbd://127.0.0.1:{port}"), false),
                (format!("nbd+unix:///?socket={}", path.display()), false),
                (format!("nbds://localhost:{port}"), true),
            ] {
                for connections in [1, 3] {
                    let options = options.clone().connections(connections);
                    let client = options.connect(&address).await.unwrap();
                    assert_eq!(client.is_encrypted(), encrypted);
                    exercise(&client).await;
                    client.disconnect().await.unwrap();
                }
            }
        });
        stopper.stop();
        for served in serving {
            served.join().unwrap().unwrap();
        }
    });
}

#[test]
fn a_client_uses_exports_of_other_servers() {
    limited(|| {
        let qemu = QemuNbd::new(Image::raw(SIZE)).start();
        let nbdkit = Nbdkit::new("memory").param("size=1M").start();
        for server in [qemu, nbdkit].into_iter().flatten() {
            on_runtime(async |network| {
                let options = ConnectOptions::with_runtime(network);
                let client = options.connect(&server.uri("")).await.unwrap();
                exercise(&client).await;
                client.disconnect().await.unwrap();
            });
        }
    });
}
