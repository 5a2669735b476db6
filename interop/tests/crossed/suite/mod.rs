//! Requirements for every pair of a client and a server.

mod commands;
mod errors;
mod negotiation;
mod stopping;
pub(crate) mod transfers;

use crate::{
    clients::{Disk, Kind, Wanted},
    servers::{Host, Serving, Transport},
};
use nbd_proto::HeaderStyle;
use std::sync::{Mutex, PoisonError};

/// A process runs one of these tests at a time, because they count its threads.
static ALONE: Mutex<()> = Mutex::new(());

pub(crate) fn run<K: Kind, H: Host>(client: fn() -> K, host: fn() -> H, transport: Transport) {
    interop::run(move || {
        let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let (client, serving) = (client(), Serving::new(host(), transport));
        let aborted = negotiation::every_option_is_asked_for(&client, &serving);
        let entered = negotiation::exports_are_entered(&client, &serving)
            + modes_work(&client, &serving, transport)
            + several_connections_work(&client, &serving);
        let stopped = stopping::nothing_is_lost_when_the_server_stops(&client, &serving);
        client.end();

        let mut endings = serving.end();
        endings.sort_unstable();
        let mut expected = vec!["the client disconnected"; entered];
        expected.extend(vec!["the client gave up the negotiation"; aborted]);
        // A client that gets ESHUTDOWN disconnects, unless the server was quicker.
        let quicker = endings
            .iter()
            .filter(|ending| *ending == "the server is stopping");
        let quicker = quicker.count();
        assert!(quicker <= stopped, "{endings:?}");
        expected.extend(vec!["the server is stopping"; quicker]);
        expected.extend(vec!["the client disconnected"; stopped - quicker]);
        expected.sort_unstable();
        assert_eq!(endings, expected);
    });
}

/// Returns the number of connections.
fn modes_work<K: Kind>(client: &K, serving: &Serving, transport: Transport) -> usize {
    let (modes, depths): (&[HeaderStyle], &[usize]) = if transport.is_slow() {
        (&[HeaderStyle::Extended], &[16])
    } else {
        let modes = &[
            HeaderStyle::Simple,
            HeaderStyle::Structured,
            HeaderStyle::Extended,
        ];
        (modes, &[1, 4, 16])
    };
    for &mode in modes {
        let connections = 1;
        let connect = |export| {
            let wanted = Wanted { mode, connections };
            let disk = client.connect(&serving.uri(export), wanted).unwrap();
            assert_eq!(disk.mode(), mode);
            assert_eq!(disk.is_encrypted(), serving.certificates.is_some());
            disk
        };
        let (disk, quick) = (connect("disk"), connect("quick"));
        commands::all_reach_the_storage(&disk, serving);
        commands::holes_are_described(&disk);
        errors::misuse_is_not_sent(&disk);
        errors::failures_end_nothing(&disk, serving);
        for depth in depths {
            transfers::are_verified(&quick, *depth);
        }
        transfers::are_verified(&disk, 8);
        transfers::overtake_each_other(&disk, serving);
        disk.disconnect().unwrap();
        assert!(disk.is_lost());
        quick.disconnect().unwrap();
        assert!(quick.is_lost());
    }
    2 * modes.len()
}

/// Returns their number.
fn several_connections_work<K: Kind>(client: &K, serving: &Serving) -> usize {
    let connections = 3;
    let wanted = Wanted {
        mode: HeaderStyle::Extended,
        connections,
    };
    let disk = client.connect(&serving.uri("disk"), wanted).unwrap();
    transfers::are_verified(&disk, 16);
    transfers::of_threads_are_verified(&disk);
    commands::all_reach_the_storage(&disk, serving);
    disk.disconnect().unwrap();
    assert!(disk.is_lost());
    connections
}
