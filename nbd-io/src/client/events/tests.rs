use super::{ClientEvent, Observer};
use crate::client::{Error, Lost};
use nbd_proto::Command;
use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

fn connected(connections: usize) -> ClientEvent {
    ClientEvent::Connected {
        connections,
        attempts: 0,
    }
}

#[test]
fn events_are_delivered_in_order_also_those_that_come_meanwhile() {
    let heard = Arc::<Mutex<Vec<String>>>::default();
    let own = Arc::<OnceLock<Observer>>::default();
    let (log, again) = (heard.clone(), own.clone());
    let observer = Observer::new(move |event| {
        log.lock().unwrap().push(event.to_string());
        // A program that uses the client here causes another event.
        if log.lock().unwrap().len() == 1 {
            let observer = again.get().unwrap();
            observer.push(|| connected(3));
            observer.deliver();
            assert_eq!(log.lock().unwrap().len(), 1, "one event after the other");
        }
    });
    own.set(observer.clone()).unwrap();
    observer.push(|| connected(1));
    observer.push(|| connected(2));
    assert!(heard.lock().unwrap().is_empty(), "nothing below a lock");
    observer.deliver();
    let expected = [1, 2, 3].map(|count| format!("connected (connections: {count})"));
    assert_eq!(*heard.lock().unwrap(), expected);
}

#[test]
fn a_function_that_panics_gets_the_next_events_all_the_same() {
    let count = Arc::<AtomicU64>::default();
    let counted = count.clone();
    let observer = Observer::new(move |_| {
        assert!(counted.fetch_add(1, Ordering::Relaxed) > 0, "the first");
    });
    observer.push(|| connected(1));
    observer.push(|| connected(2));
    catch_unwind(AssertUnwindSafe(|| observer.deliver())).unwrap_err();
    observer.deliver();
    assert_eq!(count.load(Ordering::Relaxed), 2);
}

#[test]
fn a_request_is_slow_from_the_threshold_on() {
    let heard = Arc::<Mutex<Vec<String>>>::default();
    let (log, now) = (heard.clone(), Arc::<AtomicU64>::default());
    let observer = Observer::new(move |event| log.lock().unwrap().push(event.to_string()));
    assert!(!observer.measures());
    assert!(observer.watch(Command::Flush, 0..0).is_none());
    let clock = now.clone();
    let observer = observer.another(Some(Duration::from_millis(20)), move || {
        Duration::from_millis(clock.load(Ordering::Relaxed))
    });
    assert!(observer.measures());
    for (took, command) in [(19, Command::Write), (20, Command::Read)] {
        let watched = observer.watch(command, 512..1024);
        now.fetch_add(took, Ordering::Relaxed);
        drop(watched);
    }
    let expected = "NBD_CMD_READ of 512 bytes at 512 took 20ms";
    assert_eq!(*heard.lock().unwrap(), [expected]);
}

#[test]
fn an_observer_without_a_function_does_nothing() {
    let observer = Observer::default();
    observer.push(|| panic!("this is not made"));
    observer.deliver();
    let observer = observer.another(Some(Duration::ZERO), || panic!("this is not asked"));
    assert!(observer.watch(Command::Read, 0..1).is_none());
}

#[test]
fn the_text_of_an_event_says_all() {
    let cause = Arc::new(Lost::Closed);
    let failed = |retry_after| ClientEvent::AttemptFailed {
        attempt: 2,
        cause: Error::lost(Lost::Closed),
        retry_after,
    };
    let texts = [
        (
            ClientEvent::Connected {
                connections: 1,
                attempts: 3,
            },
            "connected again (attempts: 3, connections: 1)",
        ),
        (
            ClientEvent::Lost {
                cause: cause.clone(),
                connections: 0,
            },
            "a connection was lost: the server closed the connection (connections left: 0)",
        ),
        (
            failed(Some(Duration::from_secs(1))),
            "attempt 2 to connect again failed, the next is in 1s: \
             the connection is over: the server closed the connection",
        ),
        (
            failed(None),
            "attempt 2 to connect again failed, and was the last: \
             the connection is over: the server closed the connection",
        ),
        (
            ClientEvent::GaveUp { cause },
            "there is no connection any more: the server closed the connection",
        ),
    ];
    for (event, text) in texts {
        assert_eq!(event.to_string(), text);
    }
}
