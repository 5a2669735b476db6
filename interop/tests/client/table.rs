//! The table of features and servers, in docs/interoperability.md.

use std::process::Command;

use interop::{
    Certificates, Image, Listen, NbdServer, Nbdkit, Peer, QemuNbd, Server,
    Support::{self, No, Yes},
    Table,
};

use crate::{
    driver::{
        self, Client, ClientTls, CommandFlags, ConnectOptions, Error, HeaderStyle, Negotiation,
        Plain, TlsPolicy,
    },
    peers::Who,
    support::{
        MIB, assert_has, connect, context, go, name, options, pattern, run, secure_uri, uri,
    },
};

const NOT_OFFERED: Support = No("not offered");
const REFUSED: Support = No("refused");

/// Gets a server in the clear on a Unix socket, and starts others if need be.
type Probe = fn(Who, &Server) -> Support;

const ROWS: &[(&str, Probe)] = &[
    ("TCP, IPv4 and IPv6", |who, _| {
        for listen in [Listen::Tcp4, Listen::Tcp6] {
            works(&options().connect(&serve(who, listen).uri("disk")).unwrap());
        }
        Yes
    }),
    ("Unix sockets", |_, server| {
        works(&connect(server, "disk"));
        Yes
    }),
    ("child process on standard input and output", |who, _| {
        if who != Who::Nbdkit {
            return No("no such mode");
        }
        let mut command = Command::new("nbdkit");
        command.args(["-s", "memory", "1M"]);
        works(&options().connect_command(command).unwrap());
        Yes
    }),
    ("child process by socket activation", |who, _| {
        let image = Image::raw(MIB);
        let mut command = match who {
            Who::Qemu => Command::new("qemu-nbd"),
            Who::Nbdkit => Command::new("nbdkit"),
            Who::NbdServer => return No("no such mode"),
        };
        match who {
            Who::Qemu => command.args(["-f", "raw"]),
            _ => command.args(["--foreground", "file"]),
        };
        works(
            &options()
                .connect_activated(command.arg(image.path()))
                .unwrap(),
        );
        Yes
    }),
    ("oldstyle, newstyle that is not fixed", |who, _| {
        if who != Who::Nbdkit {
            return No("always fixed newstyle");
        }
        for server in [
            Nbdkit::new("memory").param("1M").oldstyle(),
            Nbdkit::new("memory").param("1M").mask_handshake(0),
        ] {
            works(&connect(&server.start().unwrap(), ""));
        }
        Yes
    }),
    ("`NBD_OPT_EXPORT_NAME`", |_, server| {
        works(&negotiation(server).export_name(&name("disk")).unwrap());
        Yes
    }),
    ("`NBD_OPT_GO`", |_, server| {
        works(
            &negotiation(server)
                .go(go("disk"))
                .unwrap()
                .into_result()
                .unwrap(),
        );
        Yes
    }),
    ("another export after a refused one", |who, server| {
        let strict = (who == Who::Nbdkit).then(|| {
            let server = Nbdkit::new("memory").param("1M").filter("exportname");
            let server = server
                .param("exportname=disk")
                .param("exportname-strict=true");
            server.start().unwrap()
        });
        let server = strict.as_ref().unwrap_or(server);
        let refused = negotiation(server)
            .go(go("other"))
            .unwrap()
            .into_result()
            .unwrap_err();
        works(
            &refused
                .handle
                .go(go("disk"))
                .unwrap()
                .into_result()
                .unwrap(),
        );
        Yes
    }),
    ("`NBD_OPT_INFO`", |_, server| {
        match negotiation(server).info(go("disk")).unwrap().size {
            MIB => Yes,
            0 => No("tells a size of 0"),
            other => panic!("{other} is not the size"),
        }
    }),
    ("`NBD_OPT_LIST`", |_, server| {
        let list = negotiation(server).list().unwrap();
        assert_eq!(list.len(), 1);
        Yes
    }),
    ("descriptions of exports", |who, _| {
        let server = match who {
            Who::Qemu => QemuNbd::new(Image::raw(MIB)).description("text").start(),
            Who::Nbdkit => Nbdkit::new("eval")
                .param("get_size=echo 1M")
                .param("pread=exit 1")
                .param("export_description=echo text")
                .start(),
            Who::NbdServer => return NOT_OFFERED,
        };
        let client = options().connect(&server.unwrap().uri("")).unwrap();
        let text = client.export().description.as_ref().unwrap();
        assert_eq!(text.as_str(), "text");
        Yes
    }),
    ("block size constraints", |who, server| {
        let filtered = (who == Who::Nbdkit).then(|| {
            let server = Nbdkit::new("memory").param("1M").filter("blocksize-policy");
            server.param("blocksize-minimum=512").start().unwrap()
        });
        let server = filtered.as_ref().unwrap_or(server);
        let client = connect(server, "disk");
        works(&client);
        client.export().block_sizes.map_or(NOT_OFFERED, |_| Yes)
    }),
    ("structured replies", |_, server| {
        mode(server, HeaderStyle::Structured)
    }),
    ("extended headers", |_, server| {
        mode(server, HeaderStyle::Extended)
    }),
    ("`base:allocation`", |who, server| {
        selects(who, server, &["base:allocation"])
    }),
    (
        "`qemu:dirty-bitmap`, `qemu:allocation-depth`",
        |who, server| {
            selects(
                who,
                server,
                &["qemu:dirty-bitmap:day", "qemu:allocation-depth"],
            )
        },
    ),
    ("several contexts at once", |who, server| {
        selects(who, server, &["base:allocation", "qemu:allocation-depth"])
    }),
    ("block status of some contexts", |_, server| {
        let client = connect(server, "disk");
        if !client.export().can_filter_block_status() {
            return NOT_OFFERED;
        }
        let id = client.contexts()[0].id;
        let found = client.block_status_of(&[id], 0, MIB, CommandFlags::NONE);
        assert_eq!(found.unwrap().len(), 1);
        Yes
    }),
    ("reads in one piece (`DF`)", |_, server| {
        let client = connect(server, "disk");
        if !client.export().can_df() {
            return NOT_OFFERED;
        }
        match client.read_exact_at_with(&mut [0; 4096], 0, CommandFlags::DF) {
            Ok(()) => Yes,
            Err(error) if error.errno().is_some() => No("offered, then refused"),
            Err(error) => panic!("{error:?}"),
        }
    }),
    ("`NBD_CMD_FLUSH`", |_, server| {
        offered(server, |client| {
            client.export().can_flush().then(|| client.flush())
        })
    }),
    ("`NBD_CMD_TRIM`", |_, server| {
        offered(server, |client| {
            let trim = || client.trim(0, MIB, CommandFlags::NONE);
            client.export().can_trim().then(trim)
        })
    }),
    ("`NBD_CMD_CACHE`", |_, server| {
        offered(server, |client| {
            client.export().can_cache().then(|| client.cache(0, MIB))
        })
    }),
    ("`NBD_CMD_WRITE_ZEROES`", |_, server| {
        offered(server, |client| {
            client.write_all_at(&[1; 4096], 0).unwrap();
            let zero = || client.write_zeroes(0, 4096, CommandFlags::NO_HOLE);
            let zeroed = client.export().can_write_zeroes().then(zero);
            assert_has(client, 0, &[0; 4096]);
            zeroed
        })
    }),
    ("fast zeroes", |who, server| {
        let memory = Nbdkit::new("memory").param("1M");
        let memory = (who == Who::Nbdkit).then(|| memory.start().unwrap());
        offered(memory.as_ref().unwrap_or(server), |client| {
            let zero = || client.write_zeroes(0, 4096, CommandFlags::FAST_ZERO);
            client.export().can_fast_zero().then(zero)
        })
    }),
    ("forced unit access (`FUA`)", |_, server| {
        offered(server, |client| {
            let write = || client.write_all_at_with(&[1; 512], 0, CommandFlags::FUA);
            client.export().can_fua().then(write)
        })
    }),
    ("several connections (`CAN_MULTI_CONN`)", |_, server| {
        let clients = [connect(server, "disk"), connect(server, "disk")];
        if !clients
            .iter()
            .all(|client| client.export().can_multi_conn())
        {
            return NOT_OFFERED;
        }
        clients[0].write_all_at(&[3; 512], 0).unwrap();
        assert_has(&clients[1], 0, &[3; 512]);
        Yes
    }),
    ("read-only exports", |who, _| {
        let image = Image::raw(MIB);
        let server = match who {
            Who::Qemu => QemuNbd::new(image).export_name("disk").read_only().start(),
            Who::Nbdkit => Nbdkit::file(image).read_only().start(),
            Who::NbdServer => NbdServer::new("disk", image)
                .option("readonly = true")
                .start(),
        };
        let server = server.unwrap();
        let client = connect(&server, "disk");
        assert!(client.export().is_read_only());
        let error = client.write_all_at(&[1; 512], 0).unwrap_err();
        assert!(matches!(error, Error::Misuse(_)), "{error:?}");
        Yes
    }),
    ("TLS, required by the server", |who, _| {
        let certificates = Certificates::new();
        for listen in [Listen::Tcp4, Listen::Unix] {
            let server = who
                .serve(&Image::raw(MIB), listen, Some(&certificates))
                .unwrap();
            let client = options()
                .connect(&secure_uri(&server, "disk", &certificates))
                .unwrap();
            assert!(client.is_encrypted());
            works(&client);
        }
        Yes
    }),
    ("TLS, left to the client", |who, _| {
        let certificates = Certificates::new();
        let image = Image::raw(MIB);
        let server = match who {
            Who::Qemu => return No("required or refused"),
            Who::Nbdkit => Nbdkit::file(image)
                .tls_offered(&certificates)
                .listen(Listen::Tcp4)
                .start(),
            Who::NbdServer => NbdServer::new("disk", image)
                .tls_offered(&certificates)
                .listen(Listen::Tcp4)
                .start(),
        };
        let server = server.unwrap();
        let tls = ClientTls::new().directory(certificates.dir()).unwrap();
        for (policy, encrypted) in [(TlsPolicy::Never, false), (TlsPolicy::IfOffered, true)] {
            let options = options().tls(tls.clone()).tls_policy(policy);
            let client = options.connect(&server.uri("disk")).unwrap();
            assert_eq!(client.is_encrypted(), encrypted);
            works(&client);
        }
        Yes
    }),
    ("TLS with a certificate of the client's", |who, _| {
        let certificates = Certificates::new();
        let image = Image::raw(MIB);
        let server = match who {
            Who::Qemu => QemuNbd::new(image)
                .export_name("disk")
                .tls_verified(&certificates)
                .start(),
            Who::Nbdkit => Nbdkit::file(image)
                .tls_required(&certificates)
                .verify_peer()
                .start(),
            Who::NbdServer => who.serve(&image, Listen::Unix, Some(&certificates)),
        };
        let server = server.unwrap();
        let uri = secure_uri(&server, "disk", &certificates);
        works(&options().connect(&uri).unwrap());
        Yes
    }),
];

fn serve(who: Who, listen: Listen) -> Server {
    who.serve(&Image::raw(MIB), listen, None)
        .expect("it was found to be installed")
}

fn negotiation(server: &Server) -> Negotiation<Plain> {
    let greeted = options().start(&uri(&server.uri("disk"))).unwrap();
    greeted
        .negotiation()
        .expect("the server speaks fixed newstyle")
}

/// Checks that data can be written and read back.
fn works(client: &Client) {
    assert_eq!(client.size(), MIB);
    let data = pattern(1, 10_000);
    client.write_all_at(&data, 1).unwrap();
    assert_has(client, 1, &data);
}

fn mode(server: &Server, mode: HeaderStyle) -> Support {
    let options = options().extended_headers(mode == HeaderStyle::Extended);
    let client = options.connect(&server.uri("disk")).unwrap();
    works(&client);
    if client.mode() == mode { Yes } else { REFUSED }
}

/// Uses a command, if the server offers it.
fn offered(server: &Server, probe: impl Fn(&Client) -> Option<Result<(), Error>>) -> Support {
    match probe(&connect(server, "disk")) {
        None => NOT_OFFERED,
        Some(done) => {
            done.unwrap();
            Yes
        }
    }
}

/// A server with all contexts that one like it can have, unless `server` is one already.
fn all_contexts(who: Who) -> Option<Server> {
    let image = || Image::qcow2(MIB).unwrap().bitmap("day").stop_bitmap("day");
    (who == Who::Qemu).then(|| {
        let server = QemuNbd::new(image()).export_name("disk").read_only();
        server.allocation_depth().bitmap("day").start().unwrap()
    })
}

fn selects(who: Who, server: &Server, contexts: &[&str]) -> Support {
    let other = all_contexts(who);
    let select = |options: ConnectOptions, name: &&str| options.context(context(name));
    let options = contexts.iter().fold(options(), select);
    let uri = other.as_ref().unwrap_or(server).uri("disk");
    let client = options.connect(&uri).unwrap();
    if client.contexts().len() < contexts.len() {
        return NOT_OFFERED;
    }
    let mut runs = client.extents(0..MIB).map(Result::unwrap);
    assert!(runs.all(|run| run.status.len() == contexts.len()));
    Yes
}

#[test]
fn the_tables_have_the_results() {
    run(|| {
        let columns = [
            ("qemu-nbd", Peer::QemuNbd),
            ("nbdkit", Peer::Nbdkit),
            ("nbd-server", Peer::NbdServer),
        ];
        let Some(mut table) = Table::new(columns) else {
            return;
        };
        let servers = Who::ALL.map(|who| (who, serve(who, Listen::Unix)));
        for (feature, probe) in ROWS {
            table.row(
                feature,
                servers.iter().map(|(who, server)| probe(*who, server)),
            );
        }
        table.compare("client", driver::NAME);
    });
}
