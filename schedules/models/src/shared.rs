//! The asynchronous client and the server, of which each task and each job has a thread.

use crate::{
    block_on::block_on,
    stream::{Stream, pair},
};
use nbd_io::{
    Export, NamedExports,
    client::{ConnectOptions, DialOptions, Error, Reconnect, tasks::Client},
    runtime::{Network, Runtime, Tasks},
    server::{Listener, Peer, Server, Stopper},
};
use nbd_proto::{Failure, TransmissionFlags, uri::Address};
use schedules_std::{
    sync::{Mutex, MutexGuard},
    thread::{self, JoinHandle},
};
use shuttle::rand::{Rng, thread_rng};
use std::{
    collections::VecDeque,
    io,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};

const SIZE: usize = 4 << 20;

/// The length of a long read, which takes more memory than each connection has in any case.
const LONG: usize = 3 << 19;

/// Everything outside the client and the server.
#[derive(Clone, Default)]
struct World(Arc<State>);

#[derive(Default)]
struct State {
    network: Mutex<Connecting>,
    disk: Mutex<Vec<u8>>,
}

#[derive(Default)]
struct Connecting {
    backlog: VecDeque<Stream>,
    acceptor: Option<Waker>,
    /// Bytes under way in one direction of a connection, more than a few.
    capacity: usize,
    /// Cuts the last connection.
    last: Option<Stream>,
}

impl World {
    fn network(&self) -> MutexGuard<'_, Connecting> {
        self.0.network.lock().unwrap()
    }

    /// Ends the last connection at both ends.
    fn cut(&self) {
        let last = self.network().last.take();
        if let Some(last) = last {
            last.close();
        }
    }
}

/// A short time may have passed whenever a task looks, and a long one never has; neither wakes a
/// task, so that no lost wake-up is made up for.
struct Sleep {
    is_short: bool,
}

impl Future for Sleep {
    type Output = ();

    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<()> {
        match self.is_short && thread_rng().gen_bool(0.5) {
            true => Poll::Ready(()),
            false => Poll::Pending,
        }
    }
}

impl Runtime for World {
    type Sleep = Sleep;

    fn sleep(&self, time: Duration) -> Sleep {
        Sleep {
            is_short: time <= Duration::from_millis(16),
        }
    }

    fn now(&self) -> Duration {
        Duration::ZERO
    }

    fn spawn_blocking(&self, job: impl FnOnce() + Send + 'static) {
        thread::spawn(job);
    }
}

impl Tasks for World {
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        thread::spawn(|| block_on(task));
    }
}

impl Network for World {
    type Stream = Stream;

    async fn connect(&self, _: &Address, _: &DialOptions) -> io::Result<Stream> {
        let [here, there] = pair(self.network().capacity.max(512));
        let mut network = self.network();
        network.last = Some(here.handle());
        network.backlog.push_back(there);
        let acceptor = network.acceptor.take();
        drop(network);
        acceptor.into_iter().for_each(Waker::wake);
        Ok(here)
    }
}

impl Listener for World {
    type Stream = Stream;

    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<(Stream, Peer)>> {
        let mut network = self.network();
        match network.backlog.pop_front() {
            Some(stream) => Poll::Ready(Ok((stream, Peer::Other))),
            None => {
                network.acceptor = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl Export for World {
    fn size(&self) -> u64 {
        SIZE as u64
    }

    fn flags(&self) -> TransmissionFlags {
        TransmissionFlags::SEND_FLUSH | TransmissionFlags::CAN_MULTI_CONN
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), Failure> {
        let start = usize::try_from(offset).unwrap();
        let disk = self.0.disk.lock().unwrap();
        buf.copy_from_slice(&disk[start..start + buf.len()]);
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8], _: bool) -> Result<(), Failure> {
        let start = usize::try_from(offset).unwrap();
        let mut disk = self.0.disk.lock().unwrap();
        disk[start..start + data.len()].copy_from_slice(data);
        Ok(())
    }

    fn flush(&self) -> Result<(), Failure> {
        drop(self.0.disk.lock().unwrap());
        Ok(())
    }
}

/// A server with memory for a long read of one client at a time, and a thread that ends with it.
fn start(world: &World) -> (JoinHandle<()>, Stopper) {
    *world.0.disk.lock().unwrap() = vec![0; SIZE];
    let exports = Arc::new(NamedExports::single(Arc::new(world.clone())));
    let server = Server::on_runtime(world.clone(), exports)
        .concurrency(2)
        .in_flight(LONG as u64)
        .memory(LONG as u64 - (1 << 20));
    let (stopper, listener) = (server.stopper(), world.clone());
    let serving = thread::spawn(move || block_on(server.serve(listener)).unwrap());
    (serving, stopper)
}

fn connect(
    world: &World,
    options: impl FnOnce(ConnectOptions<World>) -> ConnectOptions<World>,
) -> Client<World> {
    let options = options(ConnectOptions::with_runtime(world.clone()));
    block_on(options.connect("nbd://model")).unwrap()
}

/// Writes and flushes a program's own bytes, and reads them.
async fn use_disk(client: &Client<World>, number: u8) -> Result<(), Error> {
    let (offset, data) = (u64::from(number) * 512, vec![number + 1; 300]);
    client.write(data.clone(), offset).await?;
    client.flush().await?;
    assert_eq!(client.read(offset, data.len()).await?, data);
    Ok(())
}

fn use_from_threads(client: &Client<World>, count: u8) -> Vec<JoinHandle<()>> {
    (0..count)
        .map(|number| {
            let client = client.clone();
            thread::spawn(move || block_on(use_disk(&client, number)).unwrap())
        })
        .collect()
}

fn end(client: &Client<World>, serving: JoinHandle<()>, stopper: &Stopper) {
    // The connection may have been cut after its last use.
    let _ = block_on(client.disconnect());
    stopper.stop();
    block_on(stopper.stopped());
    serving.join().unwrap();
}

/// Tasks share a connection: one polls the stream for all, and passes the role on.
pub(crate) fn tasks_share_a_connection() {
    let world = World::default();
    let (serving, stopper) = start(&world);
    let client = connect(&world, |options| options);
    for user in use_from_threads(&client, 2) {
        user.join().unwrap();
    }
    end(&client, serving, &stopper);
}

/// The same while another task drops its request at any moment.
pub(crate) fn a_task_drops_its_request() {
    let world = World::default();
    let (serving, stopper) = start(&world);
    let client = connect(&world, |options| options);
    let users = use_from_threads(&client, 1);
    let mut polls = thread_rng().gen_range(0..3);
    let mut request = Box::pin(client.read(1024, 200));
    block_on(std::future::poll_fn(|cx| {
        let polled = request.as_mut().poll(cx);
        polls -= 1;
        match polled.is_ready() || polls < 0 {
            true => Poll::Ready(()),
            // It is polled again at any time.
            false => {
                cx.waker().wake_by_ref();
                Poll::Pending
            }
        }
    }));
    drop(request);
    for user in users {
        user.join().unwrap();
    }
    end(&client, serving, &stopper);
}

/// Unflushed changes are kept, and there is room for one: tasks share flushes, while a connection is
/// cut at any moment, and each reads its own bytes.
pub(crate) fn tasks_share_flushes_over_a_loss() {
    let world = World::default();
    let (serving, stopper) = start(&world);
    let policy = Reconnect::new().jitter_seed(1).keep_unflushed(500);
    let client = connect(&world, |options| options.reconnect(Some(policy)));
    let users = use_from_threads(&client, 2);
    world.cut();
    for user in users {
        user.join().unwrap();
    }
    end(&client, serving, &stopper);
}

/// Clients that read much at once, for whom the server has memory one after the other.
pub(crate) fn clients_share_memory() {
    let world = World::default();
    world.network().capacity = LONG / 2;
    let (serving, stopper) = start(&world);
    let users: Vec<_> = (0..3)
        .map(|_| {
            let client = connect(&world, |options| options);
            thread::spawn(move || {
                let data = block_on(client.read(0, LONG)).unwrap();
                assert!(data.len() == LONG && data.iter().all(|byte| *byte == 0));
                block_on(client.disconnect()).unwrap();
            })
        })
        .collect();
    for user in users {
        user.join().unwrap();
    }
    stopper.stop();
    block_on(stopper.stopped());
    serving.join().unwrap();
}

/// A server that is stopped at any moment ends, and so does its client, if it has one.
pub(crate) fn a_server_is_stopped() {
    let world = World::default();
    let (serving, stopper) = start(&world);
    if thread_rng().gen_bool(0.5) {
        stopper.stop();
        block_on(stopper.stopped());
        serving.join().unwrap();
        return;
    }
    let client = connect(&world, |options| options);
    let user = {
        let client = client.clone();
        thread::spawn(move || {
            let mut used = pin!(use_disk(&client, 0));
            // It fails if the server was quicker.
            let _ = block_on(used.as_mut());
            let _ = block_on(client.disconnect());
        })
    };
    stopper.stop();
    user.join().unwrap();
    drop(client);
    block_on(stopper.stopped());
    serving.join().unwrap();
}
