//! A disk over NBD, by a server and a client of `nbd-tokio`.

use nbd_object::{Layout, Location, Options, object_store::memory::InMemory};
use nbd_tokio::nbd_proto::{CommandFlags, ContextName, TransmissionFlags};
use nbd_tokio::{ConnectOptions, Listener, Server, Tokio};
use std::sync::Arc;

const MIB: u64 = 1 << 20;

#[tokio::test]
async fn a_client_writes_flushes_trims_and_sees_holes_and_a_second_writer_fences_the_server() {
    let at = Location::new(Arc::new(InMemory::new()), "disk", Tokio::current());
    at.create(1 << 40, Layout::default()).await.unwrap();
    let server = Server::single_async(at.open(Options::new()).await.unwrap());
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("socket");
    let listener = Listener::bind_unix(&socket).unwrap();
    let stopper = server.stopper();
    let serving = tokio::spawn(async move { server.serve(listener).await });

    let uri = format!("nbd+unix:///?socket={}", socket.display());
    let client = ConnectOptions::new()
        .context(ContextName::base_allocation())
        .connect(&uri)
        .await
        .unwrap();
    assert_eq!(client.size(), 1 << 40);
    for flag in [
        TransmissionFlags::SEND_FUA,
        TransmissionFlags::SEND_FAST_ZERO,
        TransmissionFlags::CAN_MULTI_CONN,
    ] {
        assert!(client.export().flags.contains(flag), "{flag:?}");
    }
    client
        .write(vec![1; 200_000 / 512 * 512], 5 * MIB)
        .await
        .unwrap();
    client
        .write_with(vec![2; 512], 1 << 39, CommandFlags::FUA)
        .await
        .unwrap();
    // The flag covers the write before, too.
    let view = at.open_read_only(None, Options::new()).await.unwrap();
    let mut bytes = [0; 1024];
    view.read(5 * MIB, 1024)
        .await
        .unwrap()
        .copy_to_slice(&mut bytes);
    assert_eq!(bytes, [1; 1024]);
    client
        .write_zeroes(0, 1 << 39, CommandFlags::FAST_ZERO)
        .await
        .unwrap();
    client.trim(1 << 39, 512, CommandFlags::NONE).await.unwrap();
    client.flush().await.unwrap();
    let mut extents = client.extents(0..1 << 40);
    let first = extents.next().await.unwrap().unwrap();
    assert_eq!((first.offset, first.len), (0, 1 << 39));
    assert_eq!(client.read(5 * MIB, 512).await.unwrap(), vec![0; 512]);
    // A part of a block stays as it is.
    assert_eq!(client.read(1 << 39, 512).await.unwrap(), vec![2; 512]);

    let newer = at.open(Options::new()).await.unwrap();
    client.write(vec![3; 512], 0).await.unwrap();
    assert!(client.flush().await.is_err());
    assert!(client.read(0, 512).await.is_err());
    newer.read(0, 512).await.unwrap();
    let _ = client.disconnect().await;
    stopper.stop();
    serving.await.unwrap().unwrap();
}
