//! The blocking client, in threads and in real time.

use nbd_sim::threads::run_many;
use std::{sync::mpsc, thread, time::Duration};

#[test]
fn no_fault_breaks_a_promise_of_the_blocking_client() {
    let (done, reports) = mpsc::channel();
    thread::spawn(move || done.send(run_many(0..200).unwrap()));
    // They take a few seconds; a client that waits for ever would wait longer.
    let reports = reports.recv_timeout(Duration::from_secs(300)).unwrap();
    assert!(reports.wrong.is_empty(), "{:#?}", reports.wrong);
    // A fault that hits nothing proves nothing.
    for fault in ["kill of the server", "loss of power", "failing write"] {
        assert!(reports.coverage[fault].1 > 0, "{:?}", reports.coverage);
    }
}
