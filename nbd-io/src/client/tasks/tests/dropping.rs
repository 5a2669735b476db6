//! Requests that are dropped while connections are lost and made again.

use super::{
    recovery::{Machine, killer, options, policy},
    sim::{Sim, join, join_all},
};
use crate::{client::tasks::Client, runtime::Runtime};
use nbd_proto::CommandFlags;
use std::{
    future::poll_fn,
    pin::pin,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    task::Poll,
    time::Duration,
};

const WRITERS: u64 = 4;
const LEN: usize = 3000;

/// Waits for a request, but perhaps not to its end. Whether it was done.
async fn perhaps<T, E: std::fmt::Debug>(
    sim: &Sim,
    request: impl Future<Output = Result<T, E>>,
) -> bool {
    let mut request = pin!(request);
    let mut polls = 1 + sim.chance().below(8);
    poll_fn(|cx| match request.as_mut().poll(cx) {
        Poll::Ready(result) => {
            result.unwrap();
            Poll::Ready(true)
        }
        Poll::Pending if polls == 0 => Poll::Ready(false),
        Poll::Pending => {
            polls -= 1;
            // It may be dropped without having been woken.
            if polls.is_multiple_of(2) {
                cx.waker().wake_by_ref();
            }
            Poll::Pending
        }
    })
    .await
}

/// Writes one place again and again, and returns how many of its requests were dropped.
async fn write_and_drop(sim: &Sim, client: &Client<Sim>, writer: u64) -> usize {
    let at = writer * 4096;
    let mut dropped = 0;
    // The possible contents: the last answered write, and every dropped one since.
    let mut may = vec![0];
    for value in 1..40 {
        let data = vec![value; LEN];
        let done = match sim.chance().below(6) {
            0 => perhaps(sim, client.flush()).await,
            1 => perhaps(sim, client.read(at, LEN)).await,
            2 => {
                let written = client.write_with(data, at, CommandFlags::FUA);
                let done = perhaps(sim, written).await;
                if done {
                    may.clear();
                }
                may.push(value);
                done
            }
            3 => {
                client.write(data, at).await.unwrap();
                may = vec![value];
                true
            }
            _ => {
                let done = perhaps(sim, client.write(data, at)).await;
                if done {
                    may.clear();
                }
                may.push(value);
                done
            }
        };
        dropped += usize::from(!done);
        let pause = Duration::from_micros(sim.chance().below(300) as u64);
        sim.sleep(pause).await;
        let found = client.read(at, LEN).await.unwrap();
        assert!(found.iter().all(|byte| *byte == found[0]), "it is torn");
        assert!(may.contains(&found[0]), "{} is not in {may:?}", found[0]);
    }
    dropped
}

#[test]
fn any_request_can_be_dropped_while_the_server_comes_and_goes() {
    let kills = AtomicUsize::new(0);
    let mut dropped = 0;
    for seed in 0..40 {
        let sim = Sim::new(seed);
        let machine = Machine::start(&sim, false);
        sim.run(async {
            let limit = [10_000, 1 << 20][usize::try_from(seed % 2).unwrap()];
            let options = options(&sim, policy().keep_unflushed(limit));
            let client = options.connect("nbd://localhost").await.unwrap();
            let done = AtomicBool::new(false);
            let load = async {
                let writers = (0..WRITERS).map(|writer| write_and_drop(&sim, &client, writer));
                dropped += join_all(writers).await.iter().sum::<usize>();
                done.store(true, Ordering::Relaxed);
            };
            let ((), killed) = join(load, killer(&sim, &machine, &done)).await;
            kills.fetch_add(killed, Ordering::Relaxed);
            client.flush().await.unwrap();
            assert!(client.pool.watchers() <= 1);
            client.disconnect().await.unwrap();
            sim.sleep(Duration::from_secs(10)).await;
        });
        assert_eq!(sim.tasks(), 0, "a task waits for ever");
    }
    let kills = kills.into_inner();
    assert!(
        kills > 500 && dropped > 500,
        "{kills} kills, {dropped} dropped"
    );
}
