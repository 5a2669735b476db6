//! The programs of others, and how they are checked.

use crate::support::{command, search_path};
use interop::{
    Certificates, Image, MIB, NbdServer, Nbdkit, Peer, Port, QemuNbd, Server, StorageDaemon,
    require,
};
use serde_json::{Value, json};
use std::{fs, net::Ipv4Addr, path::Path};

/// A program that is checked, in one configuration.
pub(super) struct Subject {
    pub(super) program: Peer,
    pub(super) what: &'static str,
    pub(super) check: fn(&[&str]) -> Option<Value>,
}

pub(super) const SUBJECTS: &[Subject] = &[
    Subject {
        program: Peer::QemuNbd,
        what: "a raw image",
        check: |rules| server(QemuNbd::new(Image::raw(8 * MIB)).start()?, "", rules),
    },
    Subject {
        program: Peer::QemuNbd,
        what: "a qcow2 image, allocation depth",
        check: |rules| {
            server(
                QemuNbd::new(Image::qcow2(16 * MIB)?)
                    .allocation_depth()
                    .start()?,
                "",
                rules,
            )
        },
    },
    Subject {
        program: Peer::QemuNbd,
        what: "read-only",
        check: |rules| {
            server(
                QemuNbd::new(Image::raw(8 * MIB)).read_only().start()?,
                "",
                rules,
            )
        },
    },
    Subject {
        program: Peer::QemuNbd,
        what: "a qcow2 image, killed and started again",
        check: |rules| {
            let image = Image::qcow2(16 * MIB)?;
            let serve = [
                "qemu-nbd",
                "--persistent",
                "--cache=writeback",
                "-f",
                "qcow2",
                "-k",
            ];
            started(&serve, &[&image.path()], rules)
        },
    },
    Subject {
        program: Peer::QemuNbd,
        what: "a raw image, over TLS",
        check: |rules| {
            let certificates = Certificates::new();
            let server = QemuNbd::new(Image::raw(8 * MIB)).tls_required(&certificates);
            secure_server(server.start()?, "", &certificates, rules)
        },
    },
    Subject {
        program: Peer::QemuStorageDaemon,
        what: "a qcow2 image with a bitmap",
        check: storage_daemon,
    },
    Subject {
        program: Peer::Nbdkit,
        what: "`memory`",
        check: |rules| server(Nbdkit::new("memory").param("size=8M").start()?, "", rules),
    },
    Subject {
        program: Peer::Nbdkit,
        what: "`memory`, `blocksize-policy`",
        check: |rules| {
            let server_of_blocks = Nbdkit::new("memory")
                .filter("blocksize-policy")
                .param("size=4M");
            let sizes = [
                "minimum=512",
                "preferred=4096",
                "maximum=1M",
                "error-policy=error",
            ];
            let with_sizes = sizes.iter().fold(server_of_blocks, |server, size| {
                server.param(format!("blocksize-{size}"))
            });
            server(with_sizes.start()?, "", rules)
        },
    },
    Subject {
        program: Peer::Nbdkit,
        what: "`pattern`, read-only, 1048577 bytes",
        check: |rules| {
            server(
                Nbdkit::new("pattern").param("size=1048577").start()?,
                "",
                rules,
            )
        },
    },
    Subject {
        program: Peer::Nbdkit,
        what: "`file`, killed and started again",
        check: |rules| {
            require(Peer::Nbdkit)?;
            let image = Image::raw(4 * MIB);
            started(
                &["nbdkit", "-f", "-U"],
                &["file".as_ref(), &image.path()],
                rules,
            )
        },
    },
    Subject {
        program: Peer::Nbdkit,
        what: "`memory`, over TLS",
        check: |rules| {
            let certificates = Certificates::new();
            let server = Nbdkit::new("memory").param("size=8M");
            let server = server.tls_required(&certificates).start()?;
            secure_server(server, "", &certificates, rules)
        },
    },
    Subject {
        program: Peer::Nbdkit,
        what: "`memory`, oldstyle",
        check: |rules| {
            let server = Nbdkit::new("memory").param("size=8M").oldstyle();
            self::server(server.start()?, "", rules)
        },
    },
    Subject {
        program: Peer::Nbdkit,
        what: "`memory`, newstyle that is not fixed",
        check: |rules| {
            let server = Nbdkit::new("memory").param("size=8M").mask_handshake(0);
            self::server(server.start()?, "", rules)
        },
    },
    Subject {
        program: Peer::NbdServer,
        what: "flush, FUA, trim",
        check: |rules| {
            let reference = NbdServer::new("disk", Image::raw(8 * MIB)).option("flush = true");
            let reference = reference.option("fua = true").option("trim = true").list();
            server(reference.start()?, "disk", rules)
        },
    },
    Subject {
        program: Peer::NbdServer,
        what: "over TLS",
        check: |rules| {
            let certificates = Certificates::new();
            let reference = NbdServer::new("disk", Image::raw(8 * MIB)).list();
            let reference = reference.tls_forced(&certificates).start()?;
            secure_server(reference, "disk", &certificates, rules)
        },
    },
    Subject {
        program: Peer::NbdInfo,
        what: "`nbdinfo`",
        check: |rules| client(Peer::NbdInfo, "{uri}", rules),
    },
    Subject {
        program: Peer::NbdInfo,
        what: "`nbdinfo`, over TLS",
        check: |rules| secure_client(Peer::NbdInfo, "{uri}", rules),
    },
    Subject {
        program: Peer::NbdCopy,
        what: "`nbdcopy`, from a server",
        check: |rules| client(Peer::NbdCopy, "{uri} null:", rules),
    },
    Subject {
        program: Peer::NbdCopy,
        what: "`nbdcopy`, to a server",
        check: |rules| client(Peer::NbdCopy, "disk {uri}", rules),
    },
    Subject {
        program: Peer::NbdCopy,
        what: "`nbdcopy`, from a server over TLS",
        check: |rules| secure_client(Peer::NbdCopy, "{uri} null:", rules),
    },
    Subject {
        program: Peer::QemuImg,
        what: "`qemu-img convert`",
        check: |rules| {
            client(
                Peer::QemuImg,
                "convert -f raw -O raw {uri} copy{job}",
                rules,
            )
        },
    },
    Subject {
        program: Peer::QemuImg,
        what: "`qemu-img convert`, over TLS",
        check: |rules| {
            let tls = "convert --object tls-creds-x509,id=tls,endpoint=client,dir={certs}";
            let disk = "driver=nbd,server.type=unix,server.path=nbd.sock,tls-creds=tls,tls-hostname=localhost";
            let words = format!("{tls} --image-opts {disk} -O raw copy");
            let at = ["--tls", "always", "--listen", "./nbd.sock"];
            client_at(&at, Peer::QemuImg, &words, rules)
        },
    },
    Subject {
        program: Peer::QemuIo,
        what: "`qemu-io`, reads and writes",
        check: |rules| {
            client(
                Peer::QemuIo,
                "-f raw -c write_-f_0_64k -c read_0_64k -c write_-z_64k_4k -c discard_128k_4k -c flush {uri}",
                rules,
            )
        },
    },
    Subject {
        program: Peer::NbdClient,
        what: "`nbd-client -l`",
        check: |rules| {
            // It takes a host and a port and no URI.
            let port = Port::new(Ipv4Addr::LOCALHOST);
            let address = port.address();
            let words = format!("-l {} {}", address.ip(), address.port());
            let at = ["--listen", &address.to_string()];
            client_at(&at, Peer::NbdClient, &words, rules)
        },
    },
    Subject {
        program: Peer::Fio,
        what: "`fio`, reads and writes",
        check: |rules| {
            client(
                Peer::Fio,
                "--name=j --ioengine=nbd --uri={uri} --rw=randrw --size=256k --bs=4k --iodepth=8 --verify=0",
                rules,
            )
        },
    },
];

/// Runs `nbd check`, and gives its document.
fn check<'a>(rules: &[&str], args: impl IntoIterator<Item = &'a str>, after: &[&str]) -> Value {
    let dir = tempfile::tempdir().expect("a directory can be made");
    fs::write(dir.path().join("disk"), vec![7; 1 << 20]).expect("a file can be written");
    let mut check = command(["check", "--json", "--timeout", "600"]);
    for rule in rules {
        check.args(["--rule", rule]);
    }
    let output = check
        .args(args)
        .args(after)
        .current_dir(dir.path())
        .env("PATH", search_path())
        .output();
    let output = output.expect("the command can be started");
    let said = String::from_utf8_lossy(&output.stderr);
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{check:?}: {error}: {said}"))
}

fn server(server: Server, export: &str, rules: &[&str]) -> Option<Value> {
    Some(check(
        rules,
        ["--write", "--rule-timeout", "3", &server.uri(export)],
        &[],
    ))
}

/// Checks a server that is started at a Unix socket, whose path is between the arguments.
fn started(before: &[&str], after: &[&Path], rules: &[&str]) -> Option<Value> {
    let dir = tempfile::tempdir().expect("a directory can be made");
    let socket = dir.path().join("nbd.sock").display().to_string();
    let uri = format!("nbd+unix:///?socket={socket}");
    let args = ["--write", "--rule-timeout", "3", &uri, "--"];
    let after = after.iter().map(|path| path.to_str().expect("a string"));
    let after: Vec<_> = [&socket[..]].into_iter().chain(after).collect();
    Some(check(rules, args.iter().chain(before).copied(), &after))
}

/// Checks a server that wants TLS, and perhaps the certificate of a client.
fn secure_server(
    server: Server,
    export: &str,
    certificates: &Certificates,
    rules: &[&str],
) -> Option<Value> {
    let dir = certificates.dir().display();
    let uri = server.uri(export);
    let tls = format!(
        "--write --rule-timeout 3 --tls always --tls-hostname localhost --tls-ca {dir}/ca-cert.pem \
         --tls-cert {dir}/client-cert.pem --tls-key {dir}/client-key.pem {uri}"
    );
    Some(check(rules, tls.split_whitespace(), &[]))
}

/// Checks the daemon, on a Unix socket that it is asked to make.
fn storage_daemon(rules: &[&str]) -> Option<Value> {
    let image = Image::qcow2(16 * MIB)?;
    let mut daemon = StorageDaemon::start()?;
    let file = json!({"driver": "file", "filename": image.path()});
    let disk = json!({"driver": "qcow2", "node-name": "disk", "file": file});
    daemon.execute("blockdev-add", &disk);
    let bitmap = json!({"node": "disk", "name": "b0"});
    daemon.execute("block-dirty-bitmap-add", &bitmap);
    let dir = tempfile::tempdir().expect("a directory can be made");
    let path = dir.path().join("nbd.sock");
    let address = json!({"type": "unix", "data": {"path": path}});
    daemon.execute("nbd-server-start", &json!({"addr": address}));
    let export = json!({"type": "nbd", "id": "disk", "node-name": "disk", "name": "disk", "writable": true, "bitmaps": ["b0"]});
    daemon.execute("block-export-add", &export);
    let uri = format!("nbd+unix:///disk?socket={}", path.display());
    Some(check(rules, ["--write", "--rule-timeout", "3", &uri], &[]))
}

/// Number of runs of a client at once.
const JOBS: [&str; 4] = ["--listen", "127.0.0.1:0", "--jobs", "4"];

fn client(program: Peer, words: &str, rules: &[&str]) -> Option<Value> {
    client_at(&JOBS, program, words, rules)
}

fn secure_client(program: Peer, words: &str, rules: &[&str]) -> Option<Value> {
    let args: Vec<_> = ["--tls", "always"].into_iter().chain(JOBS).collect();
    client_at(&args, program, words, rules)
}

/// Checks a client. Words have underscores in the place of spaces.
fn client_at(at: &[&str], program: Peer, words: &str, rules: &[&str]) -> Option<Value> {
    require(program)?;
    let words: Vec<_> = words
        .split(' ')
        .map(|word| word.replace('_', " "))
        .collect();
    let words: Vec<_> = [program.command()]
        .into_iter()
        .chain(words.iter().map(String::as_str))
        .collect();
    let args = at.iter().chain(&["--rule-timeout", "20", "--"]);
    Some(check(rules, args.copied(), &words))
}
