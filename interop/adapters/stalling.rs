//! Servers that stop reading and writing for a while.

use super::{
    disks::{Disk, Way, options},
    *,
};
use nbd_io::client::Error;
use nbd_proto::{Command, CommandFlags};
use std::{net::Shutdown, pin::Pin, sync::Condvar};

const TIMEOUT: Duration = Duration::from_secs(4);

/// More than the sockets on the way buffer, together with the verified part.
const LEN: u64 = 32 << 20;

/// A proxy between a client and a server.
struct Line {
    address: SocketAddr,
    valve: Arc<Valve>,
}

#[derive(Default)]
struct Valve {
    closed: Mutex<bool>,
    opened: Condvar,
}

impl Valve {
    fn turn(&self, closed: bool) {
        *self.closed.lock().unwrap() = closed;
        self.opened.notify_all();
    }

    fn pass(&self) {
        let mut closed = self.closed.lock().unwrap();
        while *closed {
            closed = self.opened.wait(closed).unwrap();
        }
    }

    /// Forwards one direction to its end.
    fn forward(&self, mut from: &TcpStream, mut to: &TcpStream) {
        let mut buf = vec![0; 64 << 10];
        while let Ok(n @ 1..) = from.read(&mut buf) {
            self.pass();
            if to.write_all(&buf[..n]).is_err() {
                break;
            }
            self.pass();
        }
        // Either may be gone already.
        drop(to.shutdown(Shutdown::Write));
    }
}

impl Line {
    fn new(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let valve = Arc::<Valve>::default();
        let shared = valve.clone();
        thread::spawn(move || {
            for client in listener.incoming() {
                let (client, valve) = (Arc::new(client.unwrap()), shared.clone());
                let server = Arc::new(TcpStream::connect(server).unwrap());
                let (from, to) = (client.clone(), server.clone());
                let other = valve.clone();
                thread::spawn(move || other.forward(&from, &to));
                thread::spawn(move || valve.forward(&server, &client));
            }
        });
        Self { address, valve }
    }
}

type Task = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Sends a request to a server that does not answer.
fn ask<R: Network>(client: Client<R>, command: Command) -> Task {
    Box::pin(async move {
        let begin = Instant::now();
        let none = CommandFlags::NONE;
        let asked = match command {
            Command::Read => client.read(0, 4096).await.map(drop),
            Command::Write => client.write(vec![1; 16 << 20], SIZE).await,
            Command::Flush => client.flush().await,
            _ => client.write_zeroes(0, 4096, none).await,
        };
        let took = begin.elapsed();
        let error = asked.unwrap_err();
        let Error::Timeout {
            command: late,
            after,
        } = error
        else {
            panic!("{command} after {took:?}: {error}");
        };
        assert_eq!((late, after), (command, TIMEOUT));
        assert!(took >= TIMEOUT, "{command}: {took:?}");
    })
}

/// Uses a disk through a proxy that is stopped for a while, and directly.
async fn stall<R: Network>(network: &R, options: &ConnectOptions<R>, disk: &Disk) {
    let (scheme, address) = disk.uri.split_once("://").unwrap();
    let line = Line::new(address.parse().unwrap());
    let behind = format!("{scheme}://{}", line.address);
    let slow = options.clone().request_timeout(Some(TIMEOUT));
    let stalled = slow.connect(&behind).await.unwrap();
    let sound = options.connect(&disk.uri).await.unwrap();
    verify(&stalled, 0, 1).await;

    line.valve.turn(true);
    let busy = Arc::new(());
    let (others, other) = (Arc::downgrade(&busy), sound.clone());
    let goes_on: Task = Box::pin(async move {
        let mut round = 0;
        while others.strong_count() > 0 {
            verify(&other, LEN - SIZE, round).await;
            round += 1;
        }
        // A task that is held up would go on only when one of the other requests times out.
        assert!(round > 20, "{round} rounds in all that time");
    });
    let hasty = slow.negotiation_timeout(Some(TIMEOUT / 2));
    let enters: Task = Box::pin(async move {
        let error = hasty.connect(&behind).await.unwrap_err();
        assert!(matches!(error, Error::Negotiation { .. }), "{error:?}");
    });
    let asks = [
        Command::Write,
        Command::Read,
        Command::Flush,
        Command::WriteZeroes,
        Command::Read,
        Command::Write,
    ];
    let asks = asks.map(|command| ask(stalled.clone(), command));
    let own = network.clone();
    let waits: Task = Box::pin(async move {
        together(&own, asks.into_iter().chain([enters])).await;
        drop(busy);
    });
    together(network, [goes_on, waits]).await;
    assert!(!stalled.is_lost());
    assert!(in_flight(&stalled) > 0, "the server owes replies");

    line.valve.turn(false);
    eventually(network, || in_flight(&stalled) == 0).await;
    for round in 0..100 {
        verify(&stalled, SIZE, round).await;
    }
    stalled.disconnect().await.unwrap();
    sound.disconnect().await.unwrap();
    eventually(network, || disk.stopper.connections() == 0).await;
}

fn stalls<R: Network>(network: &R, options: &ConnectOptions<R>, disk: Arc<Disk>) -> Task {
    let (network, options) = (network.clone(), options.clone());
    Box::pin(async move { stall(&network, &options, &disk).await })
}

#[test]
fn a_server_that_stalls_holds_up_no_other_and_is_used_when_it_goes_on() {
    // C-208
    limited(|| {
        let certificates = Certificates::new();
        on_runtime(async |network| {
            let options = options(&network, &certificates);
            let disks = [Way::Tcp, Way::Tls].map(|way| Disk::new(way, &certificates, LEN));
            let disks = disks.map(Arc::new);
            let all = disks
                .each_ref()
                .map(|disk| stalls(&network, &options, disk.clone()));
            together(&network, all).await;
            for disk in disks {
                Arc::into_inner(disk).unwrap().stop();
            }
        });
    });
}
