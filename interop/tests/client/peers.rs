//! Tests that are the same for every server.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    thread,
};

use interop::{Certificates, Image, Listen, NbdServer, Nbdkit, Peer, QemuNbd, Server, require};

use crate::{
    driver::{Client, CommandFlags, ConnectOptions, Error, HeaderStyle, Misuse},
    support::{
        KIB, MIB, assert_has, assert_names, assert_same, causes, connect, context, extents, info,
        map, options, pattern, read, run, secure_uri,
    },
};

/// A server that writes to a file of one export, "disk".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Who {
    Qemu,
    Nbdkit,
    NbdServer,
}

impl Who {
    pub(crate) const ALL: [Self; 3] = [Self::Qemu, Self::Nbdkit, Self::NbdServer];

    pub(crate) fn serve(
        self,
        image: &Image,
        listen: Listen,
        certificates: Option<&Certificates>,
    ) -> Option<Server> {
        match self {
            Self::Qemu => {
                let mut server = QemuNbd::new(image.clone()).discard().export_name("disk");
                if let Some(certificates) = certificates {
                    server = server.tls_required(certificates);
                }
                server.listen(listen).start()
            }
            Self::Nbdkit => {
                let mut server = Nbdkit::file(image.clone());
                if let Some(certificates) = certificates {
                    server = server.tls_required(certificates);
                }
                server.listen(listen).start()
            }
            Self::NbdServer => {
                let mut server = NbdServer::new("disk", image.clone())
                    .option("flush = true")
                    .option("fua = true")
                    .option("trim = true")
                    .list();
                if let Some(certificates) = certificates {
                    server = server.tls_forced(certificates);
                }
                server.listen(listen).start()
            }
        }
    }

    /// nbd-server knows them from version 3.26 on.
    pub(crate) fn has_structured_replies(self) -> bool {
        self != Self::NbdServer
            || require(Peer::NbdServer).is_none_or(|program| program.is_at_least(3, 26))
    }

    /// The kind of replies where there are no extended headers.
    pub(crate) fn plain_mode(self) -> HeaderStyle {
        match self.has_structured_replies() {
            true => HeaderStyle::Structured,
            false => HeaderStyle::Simple,
        }
    }

    /// Serves in the clear, on a Unix socket.
    pub(crate) fn start(self, image: &Image) -> Option<Server> {
        self.serve(image, Listen::Unix, None)
    }
}

/// Numbers that look random, the same in every run.
struct Dice(u64);

impl Dice {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}

/// Does everything that the export offers, at odd places, and checks each step against a copy in
/// memory, which it returns.
pub(crate) fn exercise(client: &Client) -> Vec<u8> {
    const STEPS: u64 = 120;
    let export = client.export();
    let size = client.size();
    let mut dice = Dice(0x1234_5678_9abc_def1);
    let mut copy = read(client, 0, size);
    for step in 0..STEPS {
        let offset = dice.below(size);
        let len = 1 + dice.below((size - offset).min(300 * KIB));
        let range = usize::try_from(offset).unwrap()..usize::try_from(offset + len).unwrap();
        let fua = match export.can_fua() && dice.below(4) == 0 {
            true => CommandFlags::FUA,
            false => CommandFlags::NONE,
        };
        match dice.below(8) {
            0..=2 => {
                let data = pattern(step, len);
                client.write_all_at_with(&data, offset, fua).unwrap();
                copy[range.clone()].copy_from_slice(&data);
            }
            3 if export.can_write_zeroes() => {
                let flags = match dice.below(2) {
                    0 => fua,
                    _ => fua.with(CommandFlags::NO_HOLE),
                };
                client.write_zeroes(offset, len, flags).unwrap();
                copy[range.clone()].fill(0);
            }
            4 if export.can_trim() => {
                client.trim(offset, len, fua).unwrap();
                // It may have any contents now, but keeps them.
                copy[range.clone()].copy_from_slice(&read(client, offset, len));
            }
            5 if export.can_cache() => client.cache(offset, len).unwrap(),
            6 if export.can_flush() => client.flush().unwrap(),
            _ => {}
        }
        assert_has(client, offset, &copy[range]);
    }

    assert_has(client, 0, &copy);
    if export.can_flush() {
        client.flush().unwrap();
    }
    copy
}

/// Exercises a server over every transport, in the clear and encrypted; then kills it and checks
/// that acknowledged writes are in the file.
fn is_driven_over_every_transport(who: Who) {
    run(move || {
        let certificates = Certificates::new();
        for listen in [Listen::Unix, Listen::Tcp4, Listen::Tcp6] {
            for tls in [None, Some(&certificates)] {
                let image = Image::raw(2 * MIB);
                let Some(mut server) = who.serve(&image, listen, tls) else {
                    return;
                };
                let uri = match tls {
                    Some(certificates) => secure_uri(&server, "disk", certificates),
                    None => server.uri("disk"),
                };
                let options = options().context(context("base:allocation"));
                let client = options.connect(&uri).unwrap();
                assert_eq!(client.is_encrypted(), tls.is_some());
                assert_eq!(client.size(), 2 * MIB);
                let copy = exercise(&client);
                if !client.contexts().is_empty() {
                    let mut end = 0;
                    for (offset, len, _) in extents(&client) {
                        assert_eq!(offset, end);
                        end += len;
                    }
                    assert_eq!(end, 2 * MIB);
                }
                client.disconnect().unwrap();

                server.restart();
                assert_same(&std::fs::read(image.path()).unwrap(), &copy, 0);
                let client = options.connect(&uri).unwrap();
                assert_has(&client, 0, &copy);
                client.disconnect().unwrap();
            }
        }
    });
}

#[test]
fn qemu_nbd_is_driven_over_every_transport() {
    is_driven_over_every_transport(Who::Qemu);
}

#[test]
fn nbdkit_is_driven_over_every_transport() {
    is_driven_over_every_transport(Who::Nbdkit);
}

#[test]
fn nbd_server_is_driven_over_every_transport() {
    is_driven_over_every_transport(Who::NbdServer);
}

#[test]
fn acknowledged_writes_outlive_a_killed_server() {
    run(|| {
        for who in Who::ALL {
            let image = Image::raw(MIB);
            let Some(mut server) = who.start(&image) else {
                continue;
            };
            let client = connect(&server, "disk");
            let data = pattern(3, 100 * KIB);
            client
                .write_all_at_with(&data, 5 * KIB, CommandFlags::FUA)
                .unwrap();
            client.write_all_at(&data, 300 * KIB).unwrap();
            client.flush().unwrap();
            server.kill();

            let mut buf = [0; 512];
            let error = client.read_exact_at(&mut buf, 0).unwrap_err();
            assert!(error.is_lost(), "{who:?}: {error:?}");
            assert!(client.is_lost());
            let again = client.flush().unwrap_err();
            assert_eq!(causes(&again), causes(&error), "the reason stays");

            server.restart();
            let client = connect(&server, "disk");
            assert_has(&client, 5 * KIB, &data);
            assert_has(&client, 300 * KIB, &data);
        }
    });
}

#[test]
fn the_client_learns_the_same_as_libnbd() {
    run(|| {
        for who in Who::ALL {
            let Some(server) = who.start(&Image::raw(3 * MIB + 512)) else {
                continue;
            };
            let client = connect(&server, "disk");
            let Some(theirs) = info(&server.uri("disk")) else {
                return;
            };
            let ours = client.export();
            let said = |field: &str| theirs[field].as_bool().unwrap();
            if who != Who::NbdServer {
                // That server answers libnbd's NBD_OPT_INFO with an export of 0 bytes.
                assert_eq!(theirs["export-size"].as_u64(), Some(client.size()));
            }
            assert_eq!(ours.is_read_only(), said("is_read_only"), "{who:?}");
            assert_eq!(ours.is_rotational(), said("is_rotational"), "{who:?}");
            assert_eq!(ours.can_cache(), said("can_cache"), "{who:?}");
            assert_eq!(ours.can_df(), said("can_df"), "{who:?}");
            assert_eq!(ours.can_fast_zero(), said("can_fast_zero"), "{who:?}");
            assert_eq!(ours.can_flush(), said("can_flush"), "{who:?}");
            assert_eq!(ours.can_fua(), said("can_fua"), "{who:?}");
            assert_eq!(ours.can_multi_conn(), said("can_multi_conn"), "{who:?}");
            assert_eq!(ours.can_trim(), said("can_trim"), "{who:?}");
            assert_eq!(ours.can_write_zeroes(), said("can_zero"), "{who:?}");
            if let Some(sizes) = ours.block_sizes {
                for (size, field) in [
                    (sizes.minimum(), "block_minimum"),
                    (sizes.preferred(), "block_preferred"),
                    (sizes.maximum(), "block_maximum"),
                ] {
                    if let Some(said) = theirs.get(field) {
                        assert_eq!(said.as_u64(), Some(size.into()), "{who:?}");
                    }
                }
            }
        }
    });
}

#[test]
fn extents_are_those_that_libnbd_finds() {
    run(|| {
        for who in [Who::Qemu, Who::Nbdkit] {
            let Some(server) = who.start(&Image::raw(8 * MIB)) else {
                continue;
            };
            let client = connect(&server, "disk");
            for (seed, offset) in [(1, 0), (2, 3 * MIB), (3, 5 * MIB - 64 * KIB)] {
                client
                    .write_all_at(&pattern(seed, 256 * KIB), offset)
                    .unwrap();
            }
            client.flush().unwrap();
            let Some(theirs) = map(&server.uri("disk"), "base:allocation") else {
                return;
            };
            assert_eq!(theirs.len(), 6, "data, hole, data, hole, data, hole");
            assert_eq!(extents(&client), theirs, "{who:?}");

            let part: Vec<_> = client
                .extents(3 * MIB + 1000..5 * MIB)
                .map(Result::unwrap)
                .collect();
            assert_eq!(part[0].offset, 3 * MIB + 1000);
            assert_eq!(part[0].len, 256 * KIB - 1000);
            assert_eq!(part[0].status, [0]);
            assert_eq!(
                part.last().unwrap().offset + part.last().unwrap().len,
                5 * MIB
            );
        }
    });
}

#[test]
fn an_unknown_export_is_a_clear_error() {
    run(|| {
        for who in [Who::Qemu, Who::NbdServer] {
            let Some(server) = who.start(&Image::raw(MIB)) else {
                continue;
            };
            let error = options().connect(&server.uri("nothing")).unwrap_err();
            assert!(matches!(error, Error::Negotiation { .. }), "{error:?}");
            assert_names(&error, &["NBD_OPT_GO", "NBD_REP_ERR_UNKNOWN"]);
        }
    });
}

#[test]
fn tcp_connections_do_not_wait_for_more_to_send() {
    // C-004
    run(|| {
        let Some(server) = Who::Nbdkit.serve(&Image::raw(MIB), Listen::Tcp4, None) else {
            return;
        };
        let stream = std::net::TcpStream::connect(server.address()).unwrap();
        let same = stream.try_clone().unwrap();
        assert!(!same.nodelay().unwrap());
        let client = options().connect_over(stream, None).unwrap();
        assert!(same.nodelay().unwrap());
        client.disconnect().unwrap();
    });
}

#[test]
fn requests_of_any_length_are_split() {
    run(|| {
        for who in Who::ALL {
            let Some(server) = who.start(&Image::raw(65 * MIB)) else {
                continue;
            };
            let client = connect(&server, "disk");
            let data = pattern(6, 64 * MIB);
            client.write_all_at(&data, 333).unwrap();
            assert_has(&client, 333, &data);
            if client.export().can_write_zeroes() {
                client
                    .write_zeroes(0, 65 * MIB, CommandFlags::NONE)
                    .unwrap();
                assert_has(&client, 0, &vec![0; 65 << 20]);
            }
            client.disconnect().unwrap();
        }
    });
}

#[test]
fn nothing_is_sent_that_makes_no_sense() {
    run(|| {
        for who in Who::ALL {
            let Some(server) = who.start(&Image::raw(MIB)) else {
                continue;
            };
            let client = connect(&server, "disk");
            let mut buf = [0; 1024];
            let error = client.read_exact_at(&mut buf, MIB - 512).unwrap_err();
            assert!(
                matches!(error, Error::Misuse(Misuse::OutOfBounds { .. })),
                "{error:?}"
            );
            let error = client.write_all_at(&buf, MIB - 512).unwrap_err();
            assert!(matches!(error, Error::Misuse(_)), "{error:?}");
            if !client.export().can_cache() {
                let error = client.cache(0, 512).unwrap_err();
                assert!(
                    matches!(error, Error::Misuse(Misuse::NotOffered { .. })),
                    "{error:?}"
                );
            }
            client.disconnect().unwrap();
        }
    });
}

/// Eight threads, each in a part of the export of its own, at the same connection.
pub(crate) fn is_hammered(client: &Client) {
    const THREADS: u64 = 8;
    let part = client.size() / THREADS;
    let done = AtomicU64::new(0);
    thread::scope(|scope| {
        for thread in 0..THREADS {
            let (client, done) = (client.clone(), &done);
            scope.spawn(move || {
                let mut dice = Dice(thread * 77 + 5);
                let start = thread * part;
                for round in 0..60 {
                    let offset = start + dice.below(part / 2);
                    // Both longer and shorter than the copied ranges and the buffers aside.
                    let len = 1 + dice.below([2 * KIB, 40 * KIB, part / 2][round % 3]);
                    let data = pattern(thread << 32 | round as u64, len);
                    client.write_all_at(&data, offset).unwrap();
                    if round % 5 == 0 && client.export().can_flush() {
                        client.flush().unwrap();
                    }
                    assert_has(&client, offset, &data);
                    done.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    assert_eq!(done.into_inner(), THREADS * 60);
}

#[test]
fn eight_threads_share_one_connection() {
    run(|| {
        let certificates = Certificates::new();
        for who in Who::ALL {
            for tls in [None, Some(&certificates)] {
                let Some(server) = who.serve(&Image::raw(8 * MIB), Listen::Tcp4, tls) else {
                    continue;
                };
                let uri = match tls {
                    Some(certificates) => secure_uri(&server, "disk", certificates),
                    None => server.uri("disk"),
                };
                let client = options().connect(&uri).unwrap();
                is_hammered(&client);
                client.disconnect().unwrap();
            }
        }
    });
}

#[test]
fn several_connections_see_each_others_writes() {
    run(|| {
        for who in Who::ALL {
            let Some(server) = who.start(&Image::raw(MIB)) else {
                continue;
            };
            let clients: Vec<Client> = (0..4).map(|_| connect(&server, "disk")).collect();
            if !clients[0].export().can_multi_conn() {
                continue;
            }
            for (seed, writer) in clients.iter().enumerate() {
                let data = pattern(seed as u64, 64 * KIB);
                writer.write_all_at(&data, 4096).unwrap();
                clients[(seed + 1) % 4].flush().unwrap();
                for reader in &clients {
                    assert_has(reader, 4096, &data);
                }
            }
        }
    });
}

#[test]
fn every_mode_works_with_every_server() {
    // C-133: without structured replies, everything but block status goes on.
    run(|| {
        for who in Who::ALL {
            let Some(server) = who.start(&Image::raw(MIB)) else {
                continue;
            };
            let simple = ConnectOptions::new()
                .extended_headers(false)
                .structured_replies(false);
            let structured = ConnectOptions::new().extended_headers(false);
            for (options, mode) in [
                (simple, HeaderStyle::Simple),
                (structured, HeaderStyle::Structured),
            ] {
                let options = options.context(context("base:allocation"));
                let client = options.connect(&server.uri("disk")).unwrap();
                if who.has_structured_replies() {
                    assert_eq!(client.mode(), mode);
                }
                if client.mode() == HeaderStyle::Simple {
                    // C-135
                    assert!(client.contexts().is_empty());
                    assert!(!client.export().can_df());
                    let error = client.block_status(0, 512, CommandFlags::NONE).unwrap_err();
                    assert!(
                        matches!(error, Error::Misuse(Misuse::NoContext)),
                        "{error:?}"
                    );
                }
                let _copy = exercise(&client);
                client.disconnect().unwrap();
            }
        }
    });
}
