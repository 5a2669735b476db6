//! The table of features and clients, in docs/interoperability.md.

use std::sync::Arc;

use crate::runtime::{self, Server};
use interop::{
    Certificates, Endpoint, Listen, MIB, Peer,
    Support::{self, No, Yes},
    Table, Tap, require, run,
};
use nbd_blocking::{BlockSizes, HeaderStyle};
use nbd_io::Memory;

use crate::{
    clients::{
        Act, KERNEL, NO_WAY, READ, ROUND_TRIP, Who, act, enter, front, list, program, run_python,
    },
    exports::{Call, PARITY, Spy},
    fio, nbd_client, nbdsh,
    serving::{Log, Serving, server, strict, tls},
};

// Options.
const EXPORT_NAME: u32 = 1;
const INFO: u32 = 6;
const GO: u32 = 7;
const SET_META_CONTEXT: u32 = 10;

type Probe = fn(Who) -> Support;

const ROWS: &[(&str, Probe)] = &[
    ("TCP, IPv4 and IPv6", |who| {
        for listen in [Listen::Tcp4, Listen::Tcp6] {
            works(who, &serve(listen));
        }
        Yes
    }),
    ("Unix sockets", |who| {
        works(who, &serve(Listen::Unix));
        Yes
    }),
    ("`NBD_OPT_EXPORT_NAME`", |who| {
        let serving = serve(Listen::Tcp4);
        let tap = Tap::new(serving.endpoint().address());
        let endpoint = Endpoint::Tcp(tap.address());
        match who {
            Who::Libnbd => {
                let old = "h.set_handshake_flags(0)";
                let entered = "h.connect_uri(uri); assert h.get_size() == MIB; h.shutdown()";
                let lines = format!("{old}; uri, code = {:?}, {entered:?}", endpoint.uri("disk"));
                let _said = nbdsh::script("exec.py", &lines).unwrap();
            }
            Who::NbdClient => {
                // One of its own options has the name of an option of the protocol.
                let nbd_client = program(Peer::NbdClient);
                let size = nbd_client::enter(&nbd_client, &endpoint, "disk", &["-no-optgo"], None);
                assert_eq!(size.unwrap(), "1MB");
            }
            _ => return No("only where `GO` is unknown"),
        }
        assert_eq!(codes(&tap), [EXPORT_NAME]);
        Yes
    }),
    ("`NBD_OPT_GO`", |who| {
        let serving = serve(Listen::Tcp4);
        let tap = Tap::new(serving.endpoint().address());
        act(who, &Endpoint::Tcp(tap.address()), &READ, None).unwrap_or_else(|_| {
            enter(&Endpoint::Tcp(tap.address()), None);
        });
        let codes = codes(&tap);
        assert!(codes.contains(&GO) && !codes.contains(&EXPORT_NAME));
        Yes
    }),
    ("`NBD_OPT_INFO`", |who| {
        let serving = serve(Listen::Tcp4);
        let tap = Tap::new(serving.endpoint().address());
        let endpoint = Endpoint::Tcp(tap.address());
        let uri = endpoint.uri("disk");
        match who {
            Who::Libnbd => {
                let code = "h.set_opt_mode(True); h.connect_uri(uri); h.opt_info(); \
                    assert h.get_size() == MIB; h.opt_abort()";
                let _said = nbdsh::script("exec.py", &format!("uri, code = {uri:?}, {code:?}"));
            }
            Who::Qemu => {
                let list = list(Who::Qemu, &endpoint).unwrap();
                assert!(list.contains("size:  1048576"), "{list}");
            }
            _ => return NO_WAY,
        }
        assert!(codes(&tap).contains(&INFO));
        Yes
    }),
    ("`NBD_OPT_LIST`", |who| {
        let serving = serve(Listen::Tcp4);
        match list(who, serving.endpoint()) {
            Some(list) => {
                assert!(list.contains("disk"), "{list}");
                Yes
            }
            None => NO_WAY,
        }
    }),
    ("block size constraints", |who| {
        let sizes = BlockSizes::new(4096, 4096, 65_536).unwrap();
        let memory = Memory::new(MIB).with_block_sizes(sizes);
        let serving = Serving::disk(Arc::new(memory));
        match act(who, serving.endpoint(), &ROUND_TRIP, None) {
            Ok(()) => Yes,
            Err(_) => {
                // Clients that do not ask for block sizes are not served.
                let nbd_client = program(Peer::NbdClient);
                let endpoint = serving.endpoint();
                let refused = nbd_client::enter(&nbd_client, endpoint, "disk", &[], None);
                assert!(refused.is_err());
                No("not asked for")
            }
        }
    }),
    ("structured replies", |who| {
        let log = works(who, &serve_with(|server| server.extended_headers(false)));
        match log.modes()[0] {
            HeaderStyle::Structured => Yes,
            _ => No("not asked for"),
        }
    }),
    ("holes in reads", |who| {
        let serving = serve(Listen::Tcp4);
        let tap = Tap::new(serving.endpoint().address());
        if let Err(no) = act(who, &Endpoint::Tcp(tap.address()), &READ, None) {
            return no;
        }
        // A mebibyte was read, and did not have to be sent.
        let received = tap.recording().server.len();
        assert!(received < 10_000, "{received}");
        Yes
    }),
    ("extended headers", |who| {
        match works(who, &serve(Listen::Unix)).modes()[0] {
            HeaderStyle::Extended => Yes,
            _ => No("not asked for"),
        }
    }),
    ("`base:allocation`", |who| {
        let spy = Spy::new(2 * MIB);
        spy.put(MIB, &[1; 1 << 20]);
        let serving = Serving::disk(spy);
        let code = "assert extents(h, 2 * MIB, 0) == {'base:allocation': [(MIB, 3), (MIB, 0)]}";
        match who {
            Who::Libnbd => run_python(&serving.uri("disk"), code),
            Who::Nbdkit => run_python(&front(serving.endpoint(), None).uri(""), code),
            Who::Qemu => {
                let map = program(Peer::QemuImg).run(["map", &serving.uri("disk")]);
                let said = map.expect_success();
                let data: Vec<_> = said.lines().skip(1).collect();
                assert!(
                    data.len() == 1 && data[0].starts_with("0x100000 "),
                    "{said}"
                );
            }
            Who::Fio => return NO_WAY,
            Who::NbdClient => return KERNEL,
        }
        Yes
    }),
    ("several contexts at once", |who| {
        let serving = serve(Listen::Unix);
        match who {
            Who::Libnbd => {
                let code = format!(
                    "h.add_meta_context('base:allocation'); h.add_meta_context({PARITY:?}); \
                    h.connect_uri(uri); assert len(extents(h, MIB, 0)) == 2"
                );
                let lines = format!("uri, code = {:?}, {code:?}", serving.uri("disk"));
                let _said = nbdsh::script("exec.py", &lines).unwrap();
                Yes
            }
            Who::Qemu | Who::Nbdkit => {
                let serving = serve(Listen::Tcp4);
                let tap = Tap::new(serving.endpoint().address());
                act(who, &Endpoint::Tcp(tap.address()), &READ, None).unwrap();
                let recording = tap.recording();
                let (options, _) = recording.options();
                let selects = |(code, _): &&(u32, Vec<u8>)| *code == SET_META_CONTEXT;
                let (_, data) = options.iter().find(selects).unwrap();
                // After the name of the export comes the number of queries.
                let queries = data.strip_prefix(b"\0\0\0\x04disk").unwrap();
                assert_eq!(queries[..4], 1_u32.to_be_bytes());
                No("one at a time")
            }
            Who::Fio => NO_WAY,
            Who::NbdClient => KERNEL,
        }
    }),
    ("reads in one piece (`DF`)", |who| {
        let spy = Spy::new(MIB);
        spy.put(65_536, b"x");
        let serving = Serving::disk(spy);
        match who {
            Who::Libnbd => {
                let code = "assert len(chunks(h, MIB, 0)[1]) == 3; \
                    assert len(chunks(h, MIB, 0, nbd.CMD_FLAG_DF)[1]) == 1";
                run_python(&serving.uri("disk"), code);
                Yes
            }
            Who::NbdClient => KERNEL,
            _ => NO_WAY,
        }
    }),
    ("`NBD_CMD_FLUSH`", |who| {
        let flush = Act {
            python: "h.flush()",
            qemu_io: "flush",
            fio: "--rw=write --fsync=1",
        };
        reaches_storage(who, &flush, |call| *call == Call::Flush)
    }),
    ("`NBD_CMD_TRIM`", |who| {
        let trim = Act {
            python: "h.trim(4096, 0)",
            qemu_io: "discard 0 4k",
            fio: "--rw=trim",
        };
        reaches_storage(who, &trim, |call| matches!(call, Call::Trim { .. }))
    }),
    ("`NBD_CMD_CACHE`", |who| {
        let cache = Act {
            python: "h.cache(4096, 0)",
            qemu_io: "",
            fio: "",
        };
        reaches_storage(who, &cache, |call| matches!(call, Call::Cache { .. }))
    }),
    ("`NBD_CMD_WRITE_ZEROES`", |who| {
        let zero = Act {
            python: "h.zero(4096, 0)",
            qemu_io: "write -z -u 0 4k",
            fio: "",
        };
        reaches_storage(who, &zero, |call| match call {
            Call::Zeroes { mode, .. } => !mode.no_hole && !mode.fast,
            _ => false,
        })
    }),
    ("zeroes without holes (`NO_HOLE`)", |who| {
        let zero = Act {
            python: "h.zero(4096, 0, nbd.CMD_FLAG_NO_HOLE)",
            qemu_io: "write -z 0 4k",
            fio: "",
        };
        reaches_storage(who, &zero, |call| match call {
            Call::Zeroes { mode, .. } => mode.no_hole,
            _ => false,
        })
    }),
    ("fast zeroes", |who| {
        let zero = Act {
            python: "h.zero(4096, 0, nbd.CMD_FLAG_FAST_ZERO)",
            qemu_io: "write -z -u -n 0 4k",
            fio: "",
        };
        reaches_storage(who, &zero, |call| match call {
            Call::Zeroes { mode, .. } => mode.fast,
            _ => false,
        })
    }),
    ("forced unit access (`FUA`)", |who| {
        let write = Act {
            python: "h.pwrite(b'x' * 512, 0, FUA)",
            qemu_io: "write -f 0 512",
            fio: "",
        };
        reaches_storage(who, &write, |call| {
            matches!(call, Call::Write { fua: true, .. })
        })
    }),
    ("several connections (`CAN_MULTI_CONN`)", |who| {
        let serving = serve(Listen::Unix);
        let copy = |uri: &str| {
            let args = ["--connections=2", "--threads=2", uri, "null:"];
            let _said = program(Peer::NbdCopy).run(args).expect_success();
        };
        match who {
            Who::Libnbd => copy(&serving.uri("disk")),
            Who::Nbdkit => copy(&front(serving.endpoint(), None).uri("")),
            Who::Fio => {
                let jobs = fio::run_jobs(
                    &program(Peer::Fio),
                    &serving.uri("disk"),
                    "--numjobs=2 --rw=read",
                );
                let _said = jobs.expect_success();
            }
            Who::Qemu => {
                let qemu_img = program(Peer::QemuImg);
                let bench = ["bench", "-f", "raw", "-c", "100", "-d", "64"];
                let bench = qemu_img.run([&bench[..], &[&serving.uri("disk")]].concat());
                let _said = bench.expect_success();
                assert_eq!(serving.stop().entered.len(), 1);
                return No("one for each disk");
            }
            Who::NbdClient => return KERNEL,
        }
        let entered = serving.stop().entered;
        assert!(entered.len() >= 2, "{entered:?}");
        Yes
    }),
    ("read-only exports", |who| {
        let serving = Serving::disk(Arc::new(Memory::new(MIB).read_only()));
        match who {
            Who::Libnbd => run_python(&serving.uri("disk"), "assert h.is_read_only()"),
            Who::Nbdkit => {
                let front = front(serving.endpoint(), None);
                run_python(&front.uri(""), "assert h.is_read_only()");
            }
            Who::Qemu => {
                let qemu_io = program(Peer::QemuIo);
                let uri = serving.uri("disk");
                let open = ["-f", "raw", "-c", "read 0 512"];
                let refused = qemu_io.run([&open[..], &[&uri]].concat()).expect_failure();
                assert!(refused.contains("Permission denied"), "{refused}");
                let read = qemu_io.run([&open[..], &["-r", &uri]].concat());
                assert!(read.expect_success().contains("read 512/512"));
            }
            Who::Fio => {
                let fio = program(Peer::Fio);
                let uri = serving.uri("disk");
                let _said = fio::run_jobs(&fio, &uri, "--rw=read").expect_success();
                let _why = fio::run_jobs(&fio, &uri, "--rw=write").expect_failure();
            }
            Who::NbdClient => return KERNEL,
        }
        Yes
    }),
    ("TLS, required by the server", |who| {
        encrypted(who, |server, certificates| {
            server.require_tls(&tls(certificates)).unwrap()
        })
    }),
    ("TLS, left to the client", |who| {
        let offer = |server: Server, certificates: &Certificates| {
            server.offer_tls(&tls(certificates)).unwrap()
        };
        works(
            who,
            &serve_with(|server| offer(server, &Certificates::new())),
        );
        encrypted(who, offer)
    }),
    ("TLS with a certificate of the client's", |who| {
        encrypted(who, |server, certificates| {
            server.require_tls(&strict(certificates)).unwrap()
        })
    }),
];

fn serve(listen: Listen) -> Serving {
    Serving::new(server(Spy::new(MIB)), listen)
}

fn serve_with(settings: impl FnOnce(Server) -> Server) -> Serving {
    Serving::new(settings(server(Spy::new(MIB))), Listen::Tcp4)
}

/// Checks that data can be written and read back, as far as the client can.
fn works(who: Who, serving: &Serving) -> Log {
    if act(who, serving.endpoint(), &ROUND_TRIP, None).is_err() {
        enter(serving.endpoint(), None);
    }
    serving.log()
}

/// Checks that a call reaches the storage.
fn reaches_storage(who: Who, what: &Act, is: fn(&Call) -> bool) -> Support {
    let spy = Spy::new(MIB);
    let serving = Serving::disk(Arc::clone(&spy) as _);
    match act(who, serving.endpoint(), what, None) {
        Ok(()) => {
            let calls = spy.calls();
            assert!(calls.iter().any(is), "{who:?}: {calls:?}");
            Yes
        }
        Err(no) => no,
    }
}

/// Checks that bytes go over TLS.
fn encrypted(who: Who, settings: impl FnOnce(Server, &Certificates) -> Server) -> Support {
    let certificates = Certificates::new();
    let serving = serve_with(|server| settings(server, &certificates));
    let certificates = Some(&certificates);
    match act(who, serving.endpoint(), &ROUND_TRIP, certificates) {
        Ok(()) => {}
        Err(KERNEL) => enter(serving.endpoint(), certificates),
        Err(no) => return no,
    }
    let entered = serving.stop().entered;
    assert!(entered.iter().any(|entered| entered.encrypted), "{who:?}");
    Yes
}

/// The options of the next conversation that has ended.
fn codes(tap: &Tap) -> Vec<u32> {
    let recording = tap.recording();
    let (options, _) = recording.options();
    options.iter().map(|(code, _)| *code).collect()
}

#[test]
fn the_tables_have_the_results() {
    run(|| {
        let columns = [
            ("libnbd", Peer::NbdSh),
            ("QEMU", Peer::QemuIo),
            ("nbdkit", Peer::Nbdkit),
            ("fio", Peer::Fio),
            ("nbd-client", Peer::NbdClient),
        ];
        let others = [Peer::NbdInfo, Peer::NbdCopy, Peer::QemuImg, Peer::QemuNbd];
        if others.into_iter().filter_map(require).count() < others.len() {
            return;
        }
        let Some(mut table) = Table::new(columns) else {
            return;
        };
        for (feature, probe) in ROWS {
            table.row(feature, Who::ALL.map(probe));
        }
        table.compare("server", runtime::NAME);
    });
}
