//! Vulnerabilities of servers, replayed by a client against ours.

use crate::{
    bounded::bounded,
    drivers::Setup,
    raw::{
        ACK, CLIENT, ERR_INVALID, ERR_TOO_BIG, ERR_UNKNOWN, EXPORT_NAME, GO, INFO, LIST, MIB,
        SET_META_CONTEXT, STRUCTURED, entered, is_closed, last_reply, memory, option, option_of,
        reply, request, simple, wanted,
    },
};
use nbd_io::{ExportsByName, Memory, Offer};
use nbd_proto::ExportName;
use socket2::SockRef;
use std::{
    io::{Read, Write},
    net::Shutdown,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

#[test]
fn cve_2005_3534_the_longest_read_fits_with_its_header() {
    // H-052
    bounded(256, || {
        Setup::new(memory()).attack(|host| {
            let mut stream = entered(host);
            let longest = 32 << 20;
            stream.write_all(&request(0, 1, 0, longest)).unwrap();
            let (errno, data) = simple(&mut stream, 32 << 20);
            assert_eq!((errno, data.len()), (0, 32 << 20));
            // One byte more is refused, and so is the longest that the field can hold.
            for len in [longest + 1, u32::MAX] {
                stream.write_all(&request(0, 2, 0, len)).unwrap();
                let (errno, _) = simple(&mut stream, 0);
                assert!([22, 75].contains(&errno), "{errno}");
            }
        });
    });
}

#[test]
fn cve_2011_0530_a_write_longer_than_the_buffer_is_not_taken() {
    // H-053
    bounded(128, || {
        Setup::new(memory()).attack(|host| {
            for len in [(32 << 20) + 1_u32, (64 << 20) + 1, u32::MAX] {
                let mut stream = entered(host);
                stream.write_all(&request(1, 1, 0, len)).unwrap();
                // Some of its payload; how much is taken is up to the server.
                drop(stream.write_all(&[1; 4096]));
                drop(stream.shutdown(Shutdown::Write));
                is_closed(&mut stream);
            }
            let mut stream = entered(host);
            stream.write_all(&request(0, 1, 0, 4096)).unwrap();
            assert_eq!(simple(&mut stream, 4096), (0, vec![0; 4096]));
        });
    });
}

#[test]
fn cve_2013_6410_an_address_that_begins_like_another_one_is_another() {
    bounded(64, || {
        let mut setup = Setup::new(memory());
        let allowed = [127, 0, 0, 11].into();
        setup.only = Some(allowed);
        setup.attack(|host| {
            for (from, code) in [
                ([127, 0, 0, 1], ERR_UNKNOWN),
                ([127, 0, 0, 111], ERR_UNKNOWN),
            ] {
                let mut stream = host.from(from.into());
                stream.read_exact(&mut [0; 18]).unwrap();
                let go = option(GO, &wanted(b""));
                stream.write_all(&[&CLIENT[..], &go].concat()).unwrap();
                assert_eq!(last_reply(&mut stream), code);
            }
        });
    });
}

#[test]
fn cve_2013_7441_no_end_of_a_negotiation_is_the_end_of_the_server() {
    // H-040, H-063
    bounded(96, || {
        Setup::new(memory()).attack(|host| {
            let mut refused = CLIENT.to_vec();
            refused.extend(option(GO, &wanted(b"no such export")));
            refused.extend(option(LIST, b""));
            refused.extend(option(EXPORT_NAME, b"no such export"));
            let mut entered = [&CLIENT[..], &option(GO, &wanted(b""))].concat();
            entered.extend(request(1, 1, 0, 16));
            entered.extend([7; 16]);
            entered.extend(request(0, 2, 0, 4096));
            for said in [refused, entered] {
                for len in 0..=said.len() {
                    let mut stream = host.raw();
                    stream.write_all(&said[..len]).unwrap();
                    if len % 2 == 0 {
                        // A reset instead of an end.
                        SockRef::from(&stream)
                            .set_linger(Some(Duration::ZERO))
                            .unwrap();
                    }
                }
            }
        });
    });
}

#[test]
fn cve_2015_0847_clients_that_come_and_go_at_once_lock_nothing_up() {
    bounded(96, || {
        Setup::new(memory()).attack(|host| {
            thread::scope(|scope| {
                for _ in 0..8 {
                    scope.spawn(|| {
                        for round in 0..25 {
                            let stream = entered(host);
                            let linger = (round % 2 == 0).then_some(Duration::ZERO);
                            SockRef::from(&stream).set_linger(linger).unwrap();
                        }
                    });
                }
            });
        });
    });
}

/// Client data after which the server refuses, closes, or waits for more, and lives.
fn survives(data: &[u8]) {
    let data = data.to_vec();
    Setup::new(memory()).attack(|host| {
        let mut stream = host.greeted();
        // It may close before it has everything.
        drop(stream.write_all(&[&CLIENT[..], &data].concat()));
        drop(stream.shutdown(Shutdown::Write));
        is_closed(&mut stream);
    });
}

#[test]
fn cve_2017_7539_unexpected_bytes_in_a_negotiation_end_their_connection() {
    bounded(64, || {
        for bytes in [
            &b"GET / HTTP/1.0\r\n\r\n"[..],
            &request(0, 1, 0, 512),
            &[0; 4096],
            &[0xff; 4096],
            b"IHAVEOPT",
            b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03",
        ] {
            survives(bytes);
        }
    });
}

#[test]
fn cve_2017_9524_a_connection_that_is_only_probed_is_dropped() {
    bounded(64, || {
        Setup::new(memory()).attack(|host| {
            for number in 0..100 {
                let stream = host.raw();
                if number % 2 == 0 {
                    SockRef::from(&stream)
                        .set_linger(Some(Duration::ZERO))
                        .unwrap();
                }
            }
        });
    });
}

#[test]
fn cve_2017_15118_a_long_name_is_an_unknown_name() {
    // H-044
    bounded(64, || {
        Setup::new(memory()).attack(|host| {
            let mut stream = host.greeted();
            stream.write_all(&CLIENT).unwrap();
            for kind in [INFO, GO] {
                for len in [255, 256, 257, 3000, 4096] {
                    let name = vec![b'a'; len];
                    stream.write_all(&option(kind, &wanted(&name))).unwrap();
                    assert_eq!(last_reply(&mut stream), ERR_UNKNOWN, "{len}");
                }
                for len in [4097, 5000, 60_000] {
                    let name = vec![b'a'; len];
                    stream.write_all(&option(kind, &wanted(&name))).unwrap();
                    let code = last_reply(&mut stream);
                    assert!(
                        [ERR_INVALID, ERR_TOO_BIG].contains(&code),
                        "{len}: {code:x}"
                    );
                }
            }
            // The connection is as good as before.
            stream.write_all(&option(GO, &wanted(b""))).unwrap();
            assert_eq!(last_reply(&mut stream), ACK);
        });
    });
}

#[test]
fn cve_2017_15119_gigabytes_of_an_option_are_not_read() {
    // H-043
    bounded(64, || {
        Setup::new(memory()).attack(|host| {
            for kind in [GO, LIST, EXPORT_NAME, 0xffff_ffff] {
                let mut stream = host.greeted();
                let head = option_of(kind, u32::MAX, &[]);
                stream.write_all(&[&CLIENT[..], &head].concat()).unwrap();
                let mut sent = 0_u64;
                while stream.write_all(&[0; 64 << 10]).is_ok() {
                    sent += 64 << 10;
                    assert!(sent < 64 * MIB, "it reads and reads");
                }
            }
        });
    });
}

/// Counts lookups of exports.
fn counted(count: &Arc<AtomicUsize>) -> Setup {
    let count = Arc::clone(count);
    Setup::new(
        ExportsByName::new(move |_: &ExportName| {
            count.fetch_add(1, Ordering::SeqCst);
            Some(Offer::new(Arc::new(Memory::new(MIB))))
        })
        .non_blocking(),
    )
}

#[test]
fn cve_2019_14850_nothing_is_opened_for_a_client_that_has_not_asked() {
    // H-050
    bounded(64, || {
        let opened = Arc::new(AtomicUsize::new(0));
        counted(&opened).each_host(|driver, host| {
            let silent: Vec<_> = (0..50).map(|_| host.greeted()).collect();
            for mut stream in &silent {
                stream.write_all(&CLIENT).unwrap();
                stream.write_all(&option(STRUCTURED, &[])).unwrap();
            }
            for stream in silent {
                let mut stream = stream;
                assert_eq!(last_reply(&mut stream), ACK);
            }
            assert_eq!(opened.load(Ordering::SeqCst), 0, "{driver:?}");
            host.still_serves();
            assert_eq!(opened.swap(0, Ordering::SeqCst), 1, "{driver:?}");
            host.stop();
        });
    });
}

#[test]
fn information_opens_exports_no_more_often_than_there_may_be_options() {
    // H-050
    bounded(64, || {
        let opened = Arc::new(AtomicUsize::new(0));
        counted(&opened).each_host(|driver, host| {
            let mut stream = host.greeted();
            stream.write_all(&CLIENT).unwrap();
            let info = option(INFO, &wanted(b"x"));
            // More than B-006, and few enough to be sent without a look at the replies.
            drop(stream.write_all(&info.repeat(1000)));
            is_closed(&mut stream);
            let count = opened.load(Ordering::SeqCst);
            assert!((1..=256).contains(&count), "{driver:?}: {count}");
            host.still_serves();
            host.stop();
            opened.store(0, Ordering::SeqCst);
        });
    });
}

#[test]
fn cve_2019_14851_no_order_of_options_is_an_assertion() {
    // H-049
    bounded(64, || {
        let exports = || {
            let name = |name| ExportName::new(name).unwrap();
            memory()
                .with(name("a"), Arc::new(Memory::new(MIB)))
                .with(name("b"), Arc::new(Memory::new(2 * MIB)))
        };
        let query = |name: &[u8]| {
            let mut data = u32::try_from(name.len()).unwrap().to_be_bytes().to_vec();
            data.extend(name);
            data.extend(b"\0\0\0\x01\0\0\0\x0fbase:allocation");
            data
        };
        let steps = [
            (INFO, wanted(b"a")),
            (INFO, wanted(b"a")),
            (INFO, wanted(b"b")),
            (SET_META_CONTEXT, query(b"a")),
            (STRUCTURED, vec![]),
            (SET_META_CONTEXT, query(b"b")),
            (SET_META_CONTEXT, query(b"a")),
            (INFO, wanted(b"no such export")),
            (STRUCTURED, vec![]),
            (GO, wanted(b"no such export")),
            (INFO, wanted(b"a")),
        ];
        Setup::new(exports()).attack(|host| {
            for last in [option(GO, &wanted(b"b")), option(EXPORT_NAME, b"b")] {
                let mut stream = host.greeted();
                stream.write_all(&CLIENT).unwrap();
                for (kind, data) in &steps {
                    stream.write_all(&option(*kind, data)).unwrap();
                    last_reply(&mut stream);
                }
                stream.write_all(&last).unwrap();
                if last[8..12] == GO.to_be_bytes() {
                    assert_eq!(last_reply(&mut stream), ACK);
                } else {
                    stream.read_exact(&mut [0; 10]).unwrap();
                }
                // No context was selected for this one.
                stream.write_all(&request(7, 1, 0, 4096)).unwrap();
                let mut header = [0; 20];
                stream.read_exact(&mut header).unwrap();
                assert_eq!(header[..4], 0x668e_33ef_u32.to_be_bytes());
                assert!(header[6] & 0x80 != 0, "an error chunk");
            }
        });
    });
}

#[test]
fn cve_2020_10761_an_error_about_a_long_name_is_no_longer_than_a_string_may_be() {
    // H-045
    bounded(64, || {
        Setup::new(memory()).attack(|host| {
            let mut stream = host.greeted();
            stream.write_all(&CLIENT).unwrap();
            for letter in [b'a', b'%', b'\x1b'] {
                let data = wanted(&[letter; 4096]);
                for kind in [INFO, GO] {
                    stream.write_all(&option(kind, &data)).unwrap();
                    let (code, text) = reply(&mut stream);
                    assert_eq!(code, ERR_UNKNOWN);
                    assert!(text.len() <= 4096, "{}", text.len());
                }
            }
            stream.write_all(&option(GO, &wanted(b""))).unwrap();
            assert_eq!(last_reply(&mut stream), ACK);
        });
    });
}

#[test]
fn cve_2022_26495_a_name_of_all_ones_is_not_one_byte_longer() {
    // H-043, H-044
    bounded(64, || {
        survives(&option_of(EXPORT_NAME, u32::MAX, b"a"));
        let long = [&u32::MAX.to_be_bytes()[..], b"name\0\0"].concat();
        for kind in [INFO, GO] {
            survives(&option_of(kind, u32::MAX, &long));
            Setup::new(memory()).attack(|host| {
                let mut stream = host.greeted();
                let both = [&CLIENT[..], &option(kind, &long)].concat();
                stream.write_all(&both).unwrap();
                assert_eq!(last_reply(&mut stream), ERR_INVALID);
            });
        }
    });
}

#[test]
fn cve_2022_26496_a_name_that_is_longer_than_its_option_is_invalid() {
    // H-044, H-046
    bounded(64, || {
        Setup::new(memory()).attack(|host| {
            let mut stream = host.greeted();
            stream.write_all(&CLIENT).unwrap();
            for kind in [INFO, GO] {
                for len in [1020, 1025, 4096, 60_000] {
                    for name in [len + 1, len - 1, len, 0xffff, 1 << 31] {
                        let mut data = u32::try_from(name).unwrap().to_be_bytes().to_vec();
                        data.resize(4 + len, b'a');
                        stream.write_all(&option(kind, &data)).unwrap();
                        let code = last_reply(&mut stream);
                        assert!([ERR_INVALID, ERR_TOO_BIG].contains(&code), "{code:x}");
                    }
                }
            }
            stream.write_all(&option(GO, &wanted(b""))).unwrap();
            assert_eq!(last_reply(&mut stream), ACK);
        });
    });
}

#[test]
fn cve_2024_7409_a_client_that_keeps_its_socket_open_keeps_no_server_from_stopping() {
    bounded(96, || {
        let go = [&CLIENT[..], &option(GO, &wanted(b""))].concat();
        let read = request(0, 1, 0, 8 << 20);
        let steps = [
            &[][..],
            &go[..2],
            &go[..9],
            &go[..],
            &[&go[..], &read[..9]].concat(),
        ];
        let reading = [&go[..], &read, &read].concat();
        Setup::new(memory()).each_host(|_, host| {
            let open: Vec<_> = steps
                .iter()
                .chain([&&reading[..]])
                .map(|said| {
                    let mut stream = host.raw();
                    stream.write_all(said).unwrap();
                    stream
                })
                .collect();
            while host.stopper.connections() < open.len() {
                thread::yield_now();
            }
            // Within the grace, or the time of the test is over.
            host.stop();
        });
    });
}
