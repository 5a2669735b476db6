//! Tokio as a runtime with a thread for each processor.

#![cfg(feature = "tls-base")]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod streams;
#[path = "../../interop/adapters/mod.rs"]
mod suite;

use interop::deadline;
use nbd_blocking::{Server, server::Event};
use nbd_io::{
    Fault, Faults, Faulty, Memory,
    client::{DialOptions, NegotiationConfig, negotiate},
    runtime::{Network, Runtime as _},
};
use nbd_proto::{Command, ExportName, Uri};
use nbd_tokio::{ConnectOptions, Cursor, Listener, Socket, Stream, Tokio};
use std::{
    future::pending,
    io,
    os::unix::net::UnixListener,
    sync::{Arc, mpsc},
    task::{Context, Wake, Waker},
    thread::{self, Thread},
    time::Duration,
};
use tokio::{
    io::AsyncWriteExt as _,
    runtime::{Builder, Runtime},
};

/// Runs a test on a runtime of its own.
fn on_runtime(test: impl AsyncFnOnce(Tokio)) {
    let runtime = Runtime::new().unwrap();
    runtime.block_on(test(Tokio::new(runtime.handle().clone())));
}

#[test]
fn any_stream_of_tokio_is_a_transport() {
    deadline(Duration::from_secs(60), || {
        on_runtime(async |_| {
            let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
            let server = Server::single(Arc::new(Memory::new(4096)));
            let serving = thread::spawn(move || server.serve_over(theirs));
            ours.set_nonblocking(true).unwrap();
            let stream = Stream::new(tokio::net::UnixStream::from_std(ours).unwrap());
            let target = NegotiationConfig::new(ExportName::default());
            let upgrade = |_| pending();
            let connected = negotiate(stream, &target, upgrade).await.unwrap();
            assert_eq!(connected.transmission.export().size, 4096);
            drop(connected);
            serving.join().unwrap().unwrap();
        });
    });
}

#[test]
fn a_server_without_a_listener_can_be_waited_for() {
    deadline(Duration::from_secs(60), || {
        on_runtime(async |_| {
            let (ours, theirs) = tokio::net::UnixStream::pair().unwrap();
            let faults = Faults::new();
            faults.add(Fault::hang().on(Command::Read));
            let disk = Faulty::new(Arc::new(Memory::new(4096)), faults.clone());
            let server = nbd_tokio::Server::single(Arc::new(disk)).grace(Duration::from_secs(3600));
            let stopper = server.stopper();
            let serving = tokio::spawn(async move {
                let ending = server.serve_over(Stream::new(theirs));
                ending.await.unwrap()
            });
            let options = ConnectOptions::new();
            let client = options.connect_over(Stream::new(ours), None).await.unwrap();
            let reader = client.clone();
            let read = tokio::spawn(async move { reader.read(0, 512).await });
            while faults.hits() == 0 {
                tokio::task::yield_now().await;
            }
            let waiting = stopper.clone();
            let mut stopped = tokio::spawn(async move { waiting.stopped().await });
            stopper.stop();
            // Requests in progress are waited for.
            let early = tokio::time::timeout(Duration::from_millis(200), &mut stopped).await;
            assert!(early.is_err());
            faults.clear();
            assert_eq!(read.await.unwrap().unwrap(), [0; 512][..]);
            drop(client);
            stopped.await.unwrap();
            assert_eq!(stopper.connections(), 0);
            serving.await.unwrap();
        });
    });
}

#[test]
fn a_write_whose_runtime_is_gone_is_not_waited_for() {
    deadline(Duration::from_secs(60), || {
        let faults = Faults::new();
        faults.add(Fault::hang().on(Command::Write));
        let disk = Faulty::new(Arc::new(Memory::new(4096)), faults.clone());
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let serving = thread::spawn(move || Server::single(Arc::new(disk)).serve_over(theirs));
        let runtime = Runtime::new().unwrap();
        let tokio = Tokio::new(runtime.handle().clone());
        let other = Runtime::new().unwrap();
        other.block_on(async {
            let entered = runtime.enter();
            let socket = Socket::from_std(ours).unwrap();
            drop(entered);
            let options = ConnectOptions::with_runtime(tokio.clone());
            let client = options.connect_over(socket, None).await.unwrap();
            let mut cursor = Cursor::new(client);
            cursor.write_all(&[1; 512]).await.unwrap();
            runtime.shutdown_background();
            let error = cursor.flush().await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::NotConnected);
        });
        faults.clear();
        serving.join().unwrap().unwrap();
    });
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

#[test]
fn a_connection_can_be_made_outside_of_tokio() {
    deadline(Duration::from_secs(60), || {
        let runtime = Builder::new_multi_thread().enable_all().build().unwrap();
        let tokio = Tokio::new(runtime.handle().clone());
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let listening = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listening.local_addr().unwrap().port();
        let mut task = Box::pin(async move {
            tokio.sleep(Duration::from_millis(10)).await;
            let unix = Uri::parse(&format!("nbd+unix:///?socket={}", path.display())).unwrap();
            let unix = tokio
                .connect(unix.address(), &DialOptions::default())
                .await
                .unwrap();
            let tcp = Uri::parse(&format!("nbd://localhost:{port}")).unwrap();
            let tcp = tokio
                .connect(tcp.address(), &DialOptions::default())
                .await
                .unwrap();
            (unix, tcp)
        });
        let waker = Waker::from(Arc::new(Unpark(thread::current())));
        let mut cx = Context::from_waker(&waker);
        while task.as_mut().poll(&mut cx).is_pending() {
            thread::park();
        }
        drop(listener);
    });
}

#[test]
fn a_negotiating_connection_is_dropped_on_any_thread() {
    deadline(Duration::from_secs(60), || {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (sender, receiver) = mpsc::channel();
        let server = Server::single(Arc::new(Memory::new(4096))).on_event(move |event| {
            if let Event::Closed { ending, .. } = event {
                sender.send(ending.to_string()).unwrap();
            }
        });
        let stopper = server.stopper();
        let serving = thread::spawn(move || {
            server.serve(nbd_blocking::Listener::from_std(listener).unwrap())
        });
        let runtime = Runtime::new().unwrap();
        let uri = Uri::parse(&format!("nbd://127.0.0.1:{port}")).unwrap();
        // The options find the runtime by themselves, which a thread without one cannot.
        let negotiation = runtime.block_on(ConnectOptions::new().start(&uri)).unwrap();
        drop(negotiation);
        assert_eq!(
            receiver.recv().unwrap(),
            "the client gave up the negotiation"
        );
        stopper.stop();
        serving.join().unwrap().unwrap();
    });
}
