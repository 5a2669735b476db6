//! Clients by the hundred that stall at every step, and one that is served.
//!
//! `CROWD=2000` in the environment makes them so many.

use crate::{
    bounded::{bounded, resident},
    drivers::{Driver, Host, LIMIT, Setup},
    raw::{CLIENT, GO, encrypted, entered_securely, is_closed, memory, option, request, wanted},
};
use interop::Certificates;
use nbd_io::tls::ServerTls;
use std::{
    io::{Read, Write},
    thread,
    time::{Duration, Instant},
};

/// Number of times that the honest client writes a block and reads it back.
const ROUNDS: u64 = 200;

/// Memory for each client, in bytes, on average: some of them ask for data that they do not take.
const EACH: usize = 320 << 10;

fn count() -> usize {
    let count = std::env::var("CROWD").map(|count| count.parse().unwrap());
    count.unwrap_or(256)
}

/// The bytes after which a client says nothing more.
fn steps() -> Vec<Vec<u8>> {
    let go = [&CLIENT[..], &option(GO, &wanted(b""))].concat();
    let tls = [&CLIENT[..], &option(5, &[])].concat();
    let after = |bytes: &[u8]| [&go[..], bytes].concat();
    let read = request(0, 1, 0, 256 << 10);
    vec![
        vec![],
        CLIENT[..2].to_vec(),
        go[..13].to_vec(),
        // Half a ClientHello.
        [&tls[..], b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03"].concat(),
        go.clone(),
        after(&read[..11]),
        after(&[&request(1, 1, 0, 64 << 10)[..], &[7; 1000]].concat()),
        after(&[&read[..], &read, &read].concat()),
    ]
}

/// The same inside TLS, in transmission.
fn secure_steps() -> [Vec<u8>; 3] {
    let half_a_write = [&request(1, 1, 0, 64 << 10)[..], &[7; 1000]].concat();
    let read = request(0, 1, 0, 256 << 10);
    [read[..7].to_vec(), half_a_write, read.repeat(3)]
}

#[test]
fn clients_that_do_not_go_on_with_a_negotiation_are_disconnected() {
    // H-041, H-048
    bounded(96, || {
        let mut setup = Setup::new(memory());
        setup.handshake_timeout = Some(Duration::from_secs(3));
        let certificates = Certificates::new();
        setup.tls = Some(ServerTls::from_directory(certificates.dir()).unwrap());
        setup.each_host(|_, host| {
            let start = Instant::now();
            let mut crowd: Vec<_> = steps()[..4]
                .iter()
                .map(|step| {
                    let mut stream = host.raw();
                    stream.write_all(step).unwrap();
                    stream
                })
                .collect();
            // Inside TLS, half of an option.
            let mut secure = encrypted(&host, &certificates);
            secure.write_all(&option(GO, &wanted(b""))[..11]).unwrap();
            for stream in &mut crowd {
                is_closed(stream);
            }
            is_closed(&mut secure);
            assert!(start.elapsed() >= Duration::from_secs(3));
            host.still_serves();
            host.stop();
        });
    });
}

#[test]
fn clients_that_stall_at_every_step_are_no_burden_for_another() {
    // H-041, H-048, H-052, H-054, H-068
    let count = count();
    bounded(128 + 3 * ((count * EACH) >> 20), move || {
        let mut setup = Setup::new(memory());
        setup.max_connections = count + 8;
        setup.handshake_timeout = None;
        let certificates = Certificates::new();
        setup.tls = Some(ServerTls::from_directory(certificates.dir()).unwrap());
        let (steps, secure_steps) = (steps(), secure_steps());
        for driver in [Driver::Blocking, Driver::Tokio, Driver::AsyncStd] {
            let host = Host::start(driver, &setup);
            let empty = resident();
            // Whether they have replies to take, too.
            let mut crowd: Vec<(Box<dyn Read>, bool)> = (0..count)
                .map(|number| -> (Box<dyn Read>, bool) {
                    let (turn, number) = (number / (steps.len() + 1), number % (steps.len() + 1));
                    if let Some(step) = steps.get(number) {
                        let mut stream = host.raw();
                        stream.write_all(step).unwrap();
                        return (Box::new(stream), number == steps.len() - 1);
                    }
                    let mut stream = entered_securely(&host, &certificates);
                    let turn = turn % secure_steps.len();
                    stream.write_all(&secure_steps[turn]).unwrap();
                    // And half a record.
                    stream.sock.write_all(b"\x17\x03\x03\x01\0").unwrap();
                    (Box::new(stream), turn == secure_steps.len() - 1)
                })
                .collect();
            while host.stopper.connections() < count {
                thread::sleep(Duration::from_millis(1));
            }
            let options = nbd_blocking::ConnectOptions::new();
            let start = Instant::now();
            let client = options.connect(&host.uri("")).unwrap();
            for round in 0..ROUNDS {
                // Some take their replies by the byte.
                let slow = crowd.iter_mut().filter(|(_, has_replies)| *has_replies);
                for (stream, _) in slow.filter(|_| round % 20 == 0) {
                    stream.read_exact(&mut [0]).unwrap();
                }
                let block = [u8::try_from(round % 251).unwrap(); 4096];
                client.write_all_at(&block, round * 4096).unwrap();
                let mut read = [0; 4096];
                client.read_exact_at(&mut read, round * 4096).unwrap();
                assert!(read == block);
            }
            let took = start.elapsed();
            client.disconnect().unwrap();
            let each = resident().saturating_sub(empty) / count;
            eprintln!(
                "{driver:?}: {count} clients, {each} bytes for each, {ROUNDS} rounds in {took:?}"
            );
            assert!(took < LIMIT, "{took:?}");
            assert!(each < EACH, "{driver:?}: {each} bytes for each");
            // They are all still there.
            assert!(host.stopper.connections() >= count);
            host.stop();
            drop(crowd);
        }
    });
}
