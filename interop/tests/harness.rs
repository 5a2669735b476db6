//! The harness itself, proven with foreign programs at both ends.

use std::{io::Read, net::TcpStream, time::Duration};

use interop::{
    Certificates, Flaw, Image, Listen, NbdServer, Nbdkit, Peer, Program, QemuNbd, Server, deadline,
    require,
};

const MIB: u64 = 1 << 20;

/// Ample even for a loaded machine: a test that reaches it hangs.
const LIMIT: Duration = Duration::from_secs(120);

fn assert_serves(nbdinfo: &Program, uri: &str, size: u64) {
    let said = nbdinfo.run(["--size", uri]).expect_success();
    assert_eq!(said.trim(), size.to_string(), "{uri}");
}

fn assert_refuses(nbdinfo: &Program, uri: &str) {
    let _why = nbdinfo.run(["--size", uri]).expect_failure();
}

/// Offset, length and status of each line of a map.
fn extents(map: &str) -> Vec<(u64, u64, u64)> {
    let extent = |line: &str| {
        let mut numbers = line.split_whitespace().map_while(|word| word.parse().ok());
        Some((numbers.next()?, numbers.next()?, numbers.next()?))
    };
    map.lines().filter_map(extent).collect()
}

/// Runs a test's body with `nbdinfo` as the client, or not at all.
fn with_nbdinfo(body: impl FnOnce(&Program) + Send + 'static) {
    if let Some(nbdinfo) = require(Peer::NbdInfo) {
        deadline(LIMIT, move || body(&nbdinfo));
    }
}

// One export of 1 MiB each, which answers to the name "disk".

fn nbdkit() -> Nbdkit {
    Nbdkit::new("memory").param("size=1M")
}

fn qemu_nbd() -> QemuNbd {
    QemuNbd::new(Image::raw(MIB)).export_name("disk")
}

fn nbd_server() -> NbdServer {
    NbdServer::new("disk", Image::raw(MIB))
}

const EVERYWHERE: [Listen; 3] = [Listen::Unix, Listen::Tcp4, Listen::Tcp6];

#[test]
fn nbdkit_serves_on_every_transport() {
    with_nbdinfo(|nbdinfo| {
        for listen in EVERYWHERE {
            let server = Nbdkit::new("memory")
                .param("size=3M")
                .listen(listen)
                .start();
            let Some(server) = server else { return };
            assert_serves(nbdinfo, &server.uri(""), 3 * MIB);
        }
    });
}

#[test]
fn qemu_nbd_serves_on_every_transport() {
    with_nbdinfo(|nbdinfo| {
        for listen in EVERYWHERE {
            let server = QemuNbd::new(Image::raw(3 * MIB))
                .listen(listen)
                .export_name("a disk");
            let Some(server) = server.start() else { return };
            assert_serves(nbdinfo, &server.uri("a disk"), 3 * MIB);
        }
    });
}

#[test]
fn nbd_server_serves_on_every_transport() {
    with_nbdinfo(|nbdinfo| {
        for listen in EVERYWHERE {
            let server = NbdServer::new("one", Image::raw(MIB)).export("two", Image::raw(2 * MIB));
            let Some(server) = server.listen(listen).start() else {
                return;
            };
            assert_serves(nbdinfo, &server.uri("one"), MIB);
            assert_serves(nbdinfo, &server.uri("two"), 2 * MIB);
        }
    });
}

#[test]
fn nbdkit_becomes_the_odd_servers_of_the_past() {
    with_nbdinfo(|nbdinfo| {
        let Some(oldstyle) = nbdkit().oldstyle().start() else {
            return;
        };
        let Some(newstyle) = nbdkit().mask_handshake(0).start() else {
            return;
        };
        let Some(simple) = nbdkit().no_structured_replies().start() else {
            return;
        };
        let Some(filtered) = nbdkit().filter("truncate").param("truncate=2M").start() else {
            return;
        };

        let protocol = |server: &Server| {
            let said = nbdinfo.run([&server.uri("")]).expect_success();
            said.lines().next().unwrap_or_default().to_owned()
        };
        assert_eq!(
            protocol(&oldstyle),
            "protocol: oldstyle without TLS, using simple packets"
        );
        assert_eq!(
            protocol(&newstyle),
            "protocol: newstyle without TLS, using simple packets"
        );
        assert_eq!(
            protocol(&simple),
            "protocol: newstyle-fixed without TLS, using simple packets"
        );
        assert_serves(nbdinfo, &filtered.uri(""), 2 * MIB);
    });
}

#[test]
fn tls_needs_the_right_certificates() {
    with_nbdinfo(|nbdinfo| {
        let certificates = Certificates::new();
        let strangers = Certificates::new();
        // Not on IPv6: libnbd sends the literal address as the server's name, which GnuTLS refuses.
        for listen in [Listen::Unix, Listen::Tcp4] {
            let servers = [
                nbdkit().tls_required(&certificates).listen(listen).start(),
                qemu_nbd()
                    .tls_required(&certificates)
                    .listen(listen)
                    .start(),
                nbd_server()
                    .tls_forced(&certificates)
                    .listen(listen)
                    .start(),
            ];
            for server in servers.into_iter().flatten() {
                assert_serves(nbdinfo, &server.tls_uri("disk", &certificates), MIB);
                assert_refuses(nbdinfo, &server.uri("disk"));
                // libnbd has no name to verify on a Unix socket, and then verifies nothing.
                if listen != Listen::Unix {
                    assert_refuses(nbdinfo, &server.tls_uri("disk", &strangers));
                }
            }
        }
    });
}

#[test]
fn offered_tls_leaves_the_choice_to_the_client() {
    with_nbdinfo(|nbdinfo| {
        let certificates = Certificates::new();
        let servers = [
            nbdkit()
                .tls_offered(&certificates)
                .listen(Listen::Tcp4)
                .start(),
            nbd_server()
                .tls_offered(&certificates)
                .listen(Listen::Tcp4)
                .start(),
        ];
        for server in servers.into_iter().flatten() {
            assert_serves(nbdinfo, &server.uri("disk"), MIB);
            assert_serves(nbdinfo, &server.tls_uri("disk", &certificates), MIB);
        }
    });
}

#[test]
fn nbd_server_guards_single_exports() {
    with_nbdinfo(|nbdinfo| {
        let certificates = Certificates::new();
        let server = NbdServer::new("open", Image::raw(MIB))
            .tls_offered(&certificates)
            .export("guarded", Image::raw(2 * MIB))
            .tls_selective(&certificates)
            .list();
        let Some(server) = server.listen(Listen::Tcp4).start() else {
            return;
        };
        assert_serves(nbdinfo, &server.uri("open"), MIB);
        assert_refuses(nbdinfo, &server.uri("guarded"));
        assert_serves(nbdinfo, &server.tls_uri("guarded", &certificates), 2 * MIB);
    });
}

#[test]
fn a_server_can_want_the_clients_certificate() {
    with_nbdinfo(|nbdinfo| {
        let right = Certificates::new();
        let servers = [
            nbdkit()
                .tls_required(&right)
                .verify_peer()
                .listen(Listen::Tcp4)
                .start(),
            qemu_nbd().tls_verified(&right).listen(Listen::Tcp4).start(),
            nbd_server().tls_forced(&right).listen(Listen::Tcp4).start(),
        ];
        for server in servers.into_iter().flatten() {
            assert_serves(nbdinfo, &server.tls_uri("disk", &right), MIB);

            // The client still knows the right authority, but has a certificate of another one.
            let stranger = Certificates::new();
            std::fs::copy(right.ca_certificate(), stranger.ca_certificate()).unwrap();
            assert_refuses(nbdinfo, &server.tls_uri("disk", &stranger));
        }
    });
}

#[test]
fn flawed_certificates_are_served_and_refused() {
    with_nbdinfo(|nbdinfo| {
        for flaw in [Flaw::Expired, Flaw::OtherAuthority, Flaw::WrongName] {
            let flawed = Certificates::with_server(flaw);
            let servers = [
                nbdkit().tls_required(&flawed).listen(Listen::Tcp4).start(),
                qemu_nbd()
                    .tls_required(&flawed)
                    .listen(Listen::Tcp4)
                    .start(),
                nbd_server()
                    .tls_forced(&flawed)
                    .listen(Listen::Tcp4)
                    .start(),
            ];
            for server in servers.into_iter().flatten() {
                assert_refuses(nbdinfo, &server.tls_uri("disk", &flawed));
            }
        }
    });
}

#[test]
fn flawed_client_certificates_are_refused() {
    with_nbdinfo(|nbdinfo| {
        for flaw in [Flaw::Expired, Flaw::OtherAuthority] {
            let flawed = Certificates::with_client(flaw);
            let servers = [
                nbdkit()
                    .tls_required(&flawed)
                    .verify_peer()
                    .listen(Listen::Tcp4)
                    .start(),
                qemu_nbd()
                    .tls_verified(&flawed)
                    .listen(Listen::Tcp4)
                    .start(),
                nbd_server()
                    .tls_forced(&flawed)
                    .listen(Listen::Tcp4)
                    .start(),
            ];
            for server in servers.into_iter().flatten() {
                assert_refuses(nbdinfo, &server.tls_uri("disk", &flawed));
            }
        }
    });
}

#[test]
fn qemu_nbd_reports_written_ranges() {
    with_nbdinfo(|nbdinfo| {
        let Some(image) = Image::qcow2(MIB) else {
            return;
        };
        let image = image
            .io("write -P 1 0 64k")
            .bitmap("day")
            .io("write -P 2 128k 64k");
        let image = image.stop_bitmap("day");
        let server = QemuNbd::new(image)
            .bitmap("day")
            .read_only()
            .description("what has changed");
        let Some(server) = server.start() else { return };

        let map = nbdinfo
            .run(["--map=qemu:dirty-bitmap:day", &server.uri("")])
            .expect_success();
        assert_eq!(
            extents(&map),
            [(0, 131_072, 0), (131_072, 65_536, 1), (196_608, 851_968, 0)]
        );
        assert!(
            nbdinfo
                .run([&server.uri("")])
                .expect_success()
                .contains("what has changed")
        );
    });
}

#[test]
fn qemu_nbd_reports_which_layer_has_the_data() {
    with_nbdinfo(|nbdinfo| {
        let Some(base) = Image::qcow2(MIB) else {
            return;
        };
        let base = base.io("write -P 1 0 512k");
        let Some(top) = base.overlay() else { return };
        let top = top.io("write -P 2 0 64k");
        let Some(server) = QemuNbd::new(top).allocation_depth().start() else {
            return;
        };

        let map = nbdinfo
            .run(["--map=qemu:allocation-depth", &server.uri("")])
            .expect_success();
        assert_eq!(
            extents(&map),
            [(0, 65_536, 1), (65_536, 458_752, 2), (524_288, 524_288, 0)]
        );
    });
}

#[test]
fn a_killed_server_comes_back_at_the_same_place() {
    with_nbdinfo(|nbdinfo| {
        for listen in [Listen::Unix, Listen::Tcp4] {
            let servers = [
                nbdkit().listen(listen).start(),
                qemu_nbd().listen(listen).start(),
                nbd_server().listen(listen).start(),
            ];
            for mut server in servers.into_iter().flatten() {
                let uri = server.uri("disk");
                assert_serves(nbdinfo, &uri, MIB);
                server.kill();
                assert!(server.ended().is_some());
                assert_refuses(nbdinfo, &uri);
                server.restart();
                assert_serves(nbdinfo, &uri, MIB);
            }
        }
    });
}

#[test]
fn a_dropped_server_hangs_up_on_its_clients() {
    deadline(LIMIT, || {
        let servers = [
            nbdkit().listen(Listen::Tcp4).start(),
            qemu_nbd().listen(Listen::Tcp4).start(),
            nbd_server().listen(Listen::Tcp4).start(),
        ];
        for server in servers.into_iter().flatten() {
            let mut client = TcpStream::connect(server.address()).unwrap();
            let mut greeting = [0; 18];
            client.read_exact(&mut greeting).unwrap();
            assert!(greeting.starts_with(b"NBDMAGICIHAVEOPT"));
            drop(server);

            // nbd-server serves each client from a process of its own: that must end as well.
            assert!(matches!(client.read(&mut greeting), Ok(0) | Err(_)));
        }
    });
}

#[test]
#[should_panic(expected = "before it served")]
fn a_server_that_does_not_start_fails_the_test_with_its_output() {
    if require(Peer::Nbdkit).is_none() {
        panic!("nothing to start, and so it ended before it served");
    }
    drop(Nbdkit::new("no-such-plugin").start());
}

#[test]
fn programs_print_their_versions() {
    for peer in [
        Peer::Nbdkit,
        Peer::QemuNbd,
        Peer::NbdServer,
        Peer::NbdInfo,
        Peer::NbdSh,
        Peer::NbdCopy,
        Peer::NbdDump,
        Peer::NbdClient,
        Peer::QemuImg,
        Peer::QemuIo,
        Peer::QemuStorageDaemon,
        Peer::Fio,
    ] {
        let Some(program) = require(peer) else {
            continue;
        };
        let version = program.version_number();
        assert!(version.contains('.'), "{version}");
        assert!(program.is_at_least(1, 0) && !program.is_at_least(1000, 0));
    }
}
