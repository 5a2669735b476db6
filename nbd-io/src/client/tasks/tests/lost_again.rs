//! Connections that are lost again, before all are restored or the loss is noticed.

use super::{
    pipe::Pipe,
    recovery::{Machine, killer, options, policy},
    server::{Behaviour, serve},
    sim::{Sim, join},
};
use crate::{
    Export, NamedExports,
    client::{Error, Lost, Reconnect, tasks::Client},
    runtime::Runtime,
};
use nbd_proto::{CommandFlags, Errno, Failure};
use std::{
    future::poll_fn,
    io,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

/// A client that has one of two connections, and has written. Then the server crashes, and is there
/// again for the second connection before the client looks at the first.
async fn crashed_while_one_is_missing(sim: &Sim, machine: &Machine) -> Client<Sim> {
    let policy = Reconnect::new()
        .delay(Duration::from_millis(20), Duration::from_millis(20))
        .keep_unflushed(1 << 20);
    let client = options(sim, policy).connections(2);
    let client = client.connect("nbd://localhost").await.unwrap();
    // Of the connections that come again the first is let in.
    let (server, host, places) = (sim.clone(), machine.clone(), AtomicUsize::new(1));
    sim.on_connect(move |pipe: Pipe| {
        let down = host.down.load(Ordering::Relaxed);
        if down && places.swap(0, Ordering::Relaxed) == 0 {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        host.connections.lock().unwrap().push(pipe.cutter());
        let exports = Arc::new(NamedExports::single(host.disk.clone()));
        serve(&server, pipe, exports, Behaviour::default());
        Ok(())
    });
    machine.down.store(true, Ordering::Relaxed);
    machine.kill();
    sim.sleep(Duration::from_millis(5)).await;
    assert_eq!(client.connections(), 1);
    // After the second write no task reads from the stream until the next tick of the connection
    // task.
    client.write(vec![6; 10], 0).await.unwrap();
    client.write(vec![7; 10], 0).await.unwrap();
    machine.kill();
    machine.down.store(false, Ordering::Relaxed);
    // The other comes after up to 20 ms more.
    sim.sleep(Duration::from_millis(100)).await;
    client
}

#[test]
fn a_connection_that_joins_does_not_read_stale_data() {
    let mut stale = 0;
    for seed in 0..20 {
        let sim = Sim::new(seed);
        let machine = Machine::start(&sim, false);
        sim.run(async {
            let client = crashed_while_one_is_missing(&sim, &machine).await;
            assert_eq!(client.connections(), 2);
            let data = client.read(0, 10).await.unwrap();
            stale += usize::from(data[..] != [7; 10]);
        });
    }
    assert_eq!(stale, 0, "of 20 times");
}

#[test]
fn a_flush_over_a_connection_that_joins_does_not_forget_unflushed_writes() {
    let mut lost = 0;
    for seed in 0..20 {
        let sim = Sim::new(seed);
        let machine = Machine::start(&sim, false);
        sim.run(async {
            let client = crashed_while_one_is_missing(&sim, &machine).await;
            client.flush().await.unwrap();
            // Every connection is looked at, and all are restored.
            sim.sleep(Duration::from_secs(5)).await;
            let data = client.read(0, 10).await.unwrap();
            lost += usize::from(data[..] != [7; 10]);
        });
    }
    assert_eq!(lost, 0, "of 20 times");
}

#[test]
fn a_reply_counts_when_it_arrives_whichever_caller_reads_it() {
    // C-192
    for keep in [0, 1 << 20] {
        let sim = Sim::new(1);
        let machine = Machine::start(&sim, false);
        sim.run(async {
            let options = options(&sim, policy().keep_unflushed(keep));
            let client = options.connect("nbd://localhost").await.unwrap();
            // Replies are read by the request that was polled last.
            let mut second = pin!(client.write(vec![7; 10], 20));
            let poll_once =
                |cx: &mut Context<'_>| Poll::Ready(second.as_mut().poll(cx).is_pending());
            assert!(poll_fn(poll_once).await);
            let fua = CommandFlags::FUA;
            client.write_with(vec![7; 10], 0, fua).await.unwrap();
            machine.kill();
            sim.sleep(Duration::from_millis(100)).await;
            second.await.unwrap();
            let flushed = client.flush().await;
            assert_eq!(flushed.is_ok(), keep > 0, "{flushed:?}");
            let expected = if keep > 0 { [7; 10] } else { [0; 10] };
            assert_eq!(&client.read(20, 10).await.unwrap()[..], expected);
        });
    }
}

#[test]
fn a_flush_covers_nothing_that_was_answered_after_it_was_sent() {
    // C-192
    for keep in [0, 1 << 20] {
        let sim = Sim::new(1);
        let machine = Machine::start(&sim, false);
        sim.run(async {
            let options = options(&sim, policy().keep_unflushed(keep));
            let client = options.connect("nbd://localhost").await.unwrap();
            let mut flush = pin!(client.flush());
            let poll_once =
                |cx: &mut Context<'_>| Poll::Ready(flush.as_mut().poll(cx).is_pending());
            assert!(poll_fn(poll_once).await);
            client.write(vec![7; 10], 0).await.unwrap();
            flush.await.unwrap();
            machine.kill();
            if keep > 0 {
                assert_eq!(&client.read(0, 10).await.unwrap()[..], [7; 10]);
            }
            let flushed = client.flush().await;
            assert_eq!(flushed.is_ok(), keep > 0, "{flushed:?}");
        });
    }
}

/// An export whose server is about to shut down, at any request.
struct Ending;

impl Export for Ending {
    fn size(&self) -> u64 {
        4096
    }

    fn read(&self, _: u64, _: &mut [u8]) -> Result<(), Failure> {
        Err(Failure::new(Errno::Shutdown))
    }
}

#[test]
fn reconnecting_to_a_server_that_ends_at_every_request_backs_off() {
    // H-038
    for dies in [false, true] {
        let sim = Sim::new(1);
        let count = Arc::new(AtomicUsize::new(0));
        let (counted, server) = (count.clone(), sim.clone());
        sim.on_connect(move |pipe: Pipe| {
            let earlier = counted.fetch_add(1, Ordering::Relaxed);
            assert!(earlier < 100, "a storm");
            let cutter = pipe.cutter();
            let die = move |_| {
                cutter.cut();
                true
            };
            let behaviour = Behaviour {
                silent: dies.then(|| Arc::new(die) as _),
                ..Behaviour::default()
            };
            let exports = Arc::new(NamedExports::single(Arc::new(Ending)));
            serve(&server, pipe, exports, behaviour);
            Ok(())
        });
        sim.run(async {
            let client = options(&sim, Reconnect::new().attempts(Some(5)));
            let client = client.connect("nbd://localhost").await.unwrap();
            let Err(Error::Lost(lost)) = client.read(0, 10).await else {
                panic!("nothing is ever answered");
            };
            let expected = matches!(*lost, Lost::NotRestored { attempts: 5, .. });
            assert!(expected, "{lost:?}");
            // Exponential backoff with equal jitter: at least a half of 100, 200, 400 and 800 ms.
            assert!(sim.now() >= Duration::from_millis(750));
        });
        assert_eq!(count.load(Ordering::Relaxed), 6);
    }
}

#[test]
fn requests_are_late_while_there_is_no_connection_too() {
    let sim = Sim::new(1);
    let machine = Machine::start(&sim, false);
    sim.run(async {
        let options = options(&sim, policy()).request_timeout(Some(Duration::from_secs(8)));
        let client = options.connect("nbd://localhost").await.unwrap();
        machine.down.store(true, Ordering::Relaxed);
        machine.kill();
        let start = sim.now();
        let error = client.read(0, 10).await.unwrap_err();
        let took = sim.now() - start;
        assert!(took < Duration::from_secs(17), "{error:?} after {took:?}");
    });
}

#[test]
fn requests_answered_before_a_disconnect_succeed() {
    for policy in [None, Some(policy())] {
        let sim = Sim::new(1);
        let machine = Machine::start(&sim, false);
        let reconnects = policy.is_some();
        sim.run(async {
            let options = options(&sim, Reconnect::new()).reconnect(policy);
            let client = options.connect("nbd://localhost").await.unwrap();
            let mut write = pin!(client.write(vec![7; 10], 0));
            let poll_once =
                |cx: &mut Context<'_>| Poll::Ready(write.as_mut().poll(cx).is_pending());
            assert!(poll_fn(poll_once).await);
            client.disconnect().await.unwrap();
            let found = machine.disk.contents.lock().unwrap().0[0];
            assert_eq!(found, 7, "it was carried out");
            let result = write.await;
            assert!(result.is_ok(), "reconnects: {reconnects}: {result:?}");
        });
    }
}

#[test]
fn nothing_is_lost_when_only_some_connections_are_restored() {
    let mut kills = 0;
    for seed in 0..60 {
        let sim = Sim::new(seed);
        let machine = Machine::start(&sim, seed % 2 == 0);
        kills += sim.run(async {
            let client = options(&sim, policy().keep_unflushed(1 << 20))
                .connections(2 + usize::try_from(seed % 2).unwrap())
                .connect("nbd://localhost")
                .await
                .unwrap();
            let (server, host) = (sim.clone(), machine.clone());
            sim.on_connect(move |pipe: Pipe| {
                if server.chance().below(3) > 0 {
                    return Err(io::ErrorKind::ConnectionRefused.into());
                }
                host.connections.lock().unwrap().push(pipe.cutter());
                let exports = Arc::new(NamedExports::single(host.disk.clone()));
                serve(&server, pipe, exports, Behaviour::default());
                Ok(())
            });
            let (client, sim) = (&client, &sim);
            let done = AtomicBool::new(false);
            let load = async {
                for round in 1..60_u8 {
                    client.write(vec![round; 10], 0).await.unwrap();
                    if sim.chance().below(3) == 0 {
                        client.write(vec![round; 10], 20).await.unwrap();
                    }
                    // Connections are idle meanwhile.
                    let pause = Duration::from_micros(sim.chance().below(6000) as u64);
                    sim.sleep(pause).await;
                    if sim.chance().below(4) == 0 {
                        client.flush().await.unwrap();
                    }
                    assert_eq!(&client.read(0, 10).await.unwrap()[..], [round; 10]);
                }
                done.store(true, Ordering::Relaxed);
            };
            join(load, killer(sim, &machine, &done)).await.1
        });
    }
    assert!(kills > 200, "only {kills} kills");
}
