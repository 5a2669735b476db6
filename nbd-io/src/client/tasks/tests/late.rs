//! Tasks that are woken and do not come.

use super::{
    engine::{Bench, Setup, is_ok, read},
    server::Behaviour,
    sim::{Sim, join},
};
use crate::{client::tasks::link::Link, runtime::Runtime};
use std::{
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Waker},
    time::Duration,
};

/// Polls a future for a task that has other things to do afterwards.
fn begin(future: Pin<&mut impl Future>) {
    let elsewhere = &mut Context::from_waker(Waker::noop());
    assert!(future.poll(elsewhere).is_pending());
}

#[test]
fn a_poller_that_was_woken_by_another_and_does_not_come_is_replaced_soon() {
    for seed in 0..20 {
        let sim = Sim::new(seed);
        sim.run(async {
            let setup = Setup {
                behaviour: Behaviour {
                    shuffle: true,
                    // The first is never answered.
                    silent: Some(Arc::new(|n| n == 0)),
                    ..Behaviour::default()
                },
                ..Setup::default()
            };
            let Bench { link, .. } = setup.connect(&sim).await;
            let link: &Link = &link;
            let mut stuck = pin!(read(link, 0, 512));
            begin(stuck.as_mut());
            let start = sim.now();
            let (first, second) = join(read(link, 512, 512), read(link, 1024, 512)).await;
            assert!(is_ok(&first) && is_ok(&second));
            let took = sim.now() - start;
            assert!(took < Duration::from_millis(50), "{took:?}");
        });
    }
}

#[test]
fn an_answer_that_came_in_time_counts_though_the_task_comes_too_late() {
    let sim = Sim::new(1);
    sim.run(async {
        let setup = Setup {
            timeout: Some(Duration::from_millis(500)),
            behaviour: Behaviour {
                late: Some(Arc::new(|_| Duration::from_millis(100))),
                ..Behaviour::default()
            },
            ..Setup::default()
        };
        let Bench { link, .. } = setup.connect(&sim).await;
        let mut forgotten = pin!(read(&link, 0, 512));
        begin(forgotten.as_mut());
        sim.sleep(Duration::from_millis(700)).await;
        let done = forgotten.await;
        assert!(is_ok(&done), "{:?}", done.result());
    });
}

#[test]
fn a_lone_request_is_sent_before_it_is_awaited() {
    let sim = Sim::new(1);
    sim.run(async {
        let setup = Setup {
            behaviour: Behaviour {
                silent: Some(Arc::new(|n| n == 0)),
                ..Behaviour::default()
            },
            ..Setup::default()
        };
        let log = setup.behaviour.log.clone();
        let Bench { link, .. } = setup.connect(&sim).await;
        {
            let mut dropped = pin!(read(&link, 0, 512));
            begin(dropped.as_mut());
        }
        sim.sleep(Duration::from_micros(1)).await;
        let mut alone = pin!(read(&link, 512, 512));
        begin(alone.as_mut());
        sim.sleep(Duration::from_millis(50)).await;
        assert_eq!(log.lock().unwrap().len(), 2);
    });
}
