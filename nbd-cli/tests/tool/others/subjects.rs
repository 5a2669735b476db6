//! The programs of others, and how they are checked.

use crate::support::{command, search_path};
use interop::{Image, MIB, NbdServer, Nbdkit, Peer, QemuNbd, Server, require};
use serde_json::Value;
use std::fs;

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
        what: "`file`",
        check: |rules| server(Nbdkit::file(Image::raw(4 * MIB)).start()?, "", rules),
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
        program: Peer::NbdInfo,
        what: "`nbdinfo`",
        check: |rules| client(Peer::NbdInfo, "{uri}", rules),
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
        program: Peer::QemuImg,
        what: "`qemu-img convert`",
        check: |rules| client(Peer::QemuImg, "convert -f raw -O raw {uri} copy", rules),
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

/// Checks a client. Words have underscores in the place of spaces.
fn client(program: Peer, words: &str, rules: &[&str]) -> Option<Value> {
    require(program)?;
    let words: Vec<_> = words
        .split(' ')
        .map(|word| word.replace('_', " "))
        .collect();
    let words: Vec<_> = [program.command()]
        .into_iter()
        .chain(words.iter().map(String::as_str))
        .collect();
    let args = ["--listen", "127.0.0.1:0", "--rule-timeout", "20", "--"];
    Some(check(rules, args, &words))
}
