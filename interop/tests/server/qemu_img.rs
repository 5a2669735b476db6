//! QEMU's `qemu-img` handles whole disks, and `qemu-nbd` lists them.

use std::{fs, sync::Arc};

use crate::runtime::Server;
use interop::{Certificates, Image, KIB, Listen, MIB, Peer, assert_same, pattern, require};
use nbd_io::{Memory, NamedExports};
use serde_json::{Value, json};

use crate::{
    exports::{Call, PARITY, Spy},
    qemu::{credentials, encrypted, fill, mode, with},
    serving::{Serving, many, name, server, strict, tls},
};

/// A disk with data and holes, and its contents.
fn disk() -> (Arc<Spy>, Vec<u8>) {
    let spy = Spy::new(8 * MIB);
    for (seed, (offset, len)) in [(0, 100_000), (3 * MIB, MIB), (8 * MIB - 5000, 5000)]
        .into_iter()
        .enumerate()
    {
        spy.put(offset, &pattern(seed as u64, len));
    }
    let contents = spy.contents();
    (spy, contents)
}

#[test]
fn an_image_is_described() {
    with(Peer::QemuImg, |qemu_img| {
        let (spy, _) = disk();
        let serving = Serving::disk(spy);
        let uri = serving.uri("disk");
        let json = |args: &[&str]| -> Value {
            serde_json::from_str(&qemu_img.run(args).expect_success()).unwrap()
        };
        let info = json(&["info", "--output=json", &uri]);
        assert_eq!(
            (&info["virtual-size"], &info["format"]),
            (&json!(8 * MIB), &json!("raw"))
        );

        let map = json(&["map", "--output=json", &uri]);
        let mut merged: Vec<(u64, u64, bool)> = Vec::new();
        for extent in map.as_array().unwrap() {
            let [start, len] = ["start", "length"].map(|key| extent[key].as_u64().unwrap());
            let zero = extent["zero"].as_bool().unwrap();
            assert_eq!(extent["data"], !zero);
            merged.push((start, len, zero));
        }
        let page = Memory::PAGE;
        assert_eq!(
            merged,
            [
                (0, 4 * page, false),
                (4 * page, 3 * MIB - 4 * page, true),
                (3 * MIB, MIB, false),
                (4 * MIB, 4 * MIB - page, true),
                (8 * MIB - page, page, false),
            ]
        );

        let measure = json(&["measure", "--output=json", "-O", "raw", &uri]);
        assert_eq!(measure["required"], 8 * MIB);
    });
}

#[test]
fn an_image_is_downloaded_whichever_way() {
    with(Peer::QemuImg, |qemu_img| {
        let (spy, expected) = disk();
        let serving = Serving::disk(spy);
        let uri = serving.uri("disk");
        for (format, options) in [
            ("raw", &["-S", "0"][..]),
            ("raw", &["-S", "64k", "-W", "-m", "16"]),
            ("raw", &["-r", "100M"]),
            ("qcow2", &["-m", "1"]),
            ("qcow2", &["-c", "-W", "-m", "8"]),
        ] {
            let image = Image::raw(0);
            let path = image.path();
            let path = path.to_str().unwrap();
            let args = ["convert", "-f", "raw", "-O", format];
            let _said = qemu_img
                .run([&args[..], options, &[&uri, path]].concat())
                .expect_success();
            let same = ["compare", "-f", "raw", "-F", format, &uri, path];
            let said = qemu_img.run(same).expect_success();
            assert_eq!(said.trim(), "Images are identical.");
            if format == "raw" {
                assert_same(&fs::read(path).unwrap(), &expected, 0);
            }
        }
        let modes = serving.stop().modes();
        assert!(
            modes.iter().all(|found| *found == mode(qemu_img)),
            "{modes:?}"
        );
    });
}

#[test]
fn an_image_is_uploaded_whichever_way() {
    with(Peer::QemuImg, |qemu_img| {
        let (source, expected) = disk();
        let source = Serving::disk(source);
        for format in ["raw", "qcow2"] {
            let image = Image::raw(0);
            let path = image.path();
            let path = path.to_str().unwrap();
            let args = [
                "convert",
                "-f",
                "raw",
                "-O",
                format,
                &source.uri("disk"),
                path,
            ];
            let _said = qemu_img.run(args).expect_success();
            for options in [
                &["-S", "0"][..],
                &["-W", "-m", "16"],
                &["--target-is-zero", "-m", "1"],
                &["-t", "writethrough"],
            ] {
                let is_zero = options.contains(&"--target-is-zero");
                let spy = Spy::new(8 * MIB);
                if !is_zero {
                    spy.put(0, &pattern(9, 8 * MIB));
                }
                let serving = Serving::disk(Arc::clone(&spy) as _);
                let uri = serving.uri("disk");
                let args = ["convert", "-n", "-f", format, "-O", "raw"];
                let _said = qemu_img
                    .run([&args[..], options, &[path, &uri]].concat())
                    .expect_success();
                assert_same(&spy.contents(), &expected, 0);
                let zeroes = |call: &Call| matches!(call, Call::Zeroes { .. } | Call::Trim { .. });
                let zeroed = spy.calls().iter().any(zeroes);
                assert_eq!(zeroed, !is_zero && !options.contains(&"-S"), "{options:?}");
            }
        }
    });
}

#[test]
fn an_image_goes_from_one_server_to_another_over_tls() {
    with(Peer::QemuImg, |qemu_img| {
        let certificates = Certificates::new();
        let credentials = credentials(&certificates);
        let (spy, expected) = disk();
        let from = server(spy).require_tls(&strict(&certificates)).unwrap();
        let from = Serving::new(from, Listen::Tcp4);
        for listen in [Listen::Tcp4, Listen::Unix] {
            let spy = Spy::new(8 * MIB);
            let to = server(Arc::clone(&spy) as _).require_tls(&tls(&certificates));
            let to = Serving::new(to.unwrap(), listen);
            let [source, target] = [&from, &to].map(|serving| encrypted(serving.endpoint()));
            let args = ["convert", "-n", "-W", "--object", &credentials];
            let places = ["--image-opts", "--target-image-opts", &source, &target];
            let _said = qemu_img.run(args.iter().chain(&places)).expect_success();
            assert_same(&spy.contents(), &expected, 0);
            let log = to.stop();
            assert!(log.entered.iter().all(|entered| entered.encrypted));
        }

        let args = ["compare", "--object", &credentials, "--image-opts"];
        let other = Spy::new(8 * MIB);
        other.put(5 * MIB + 7, b"x");
        let other = server(other).require_tls(&tls(&certificates)).unwrap();
        let other = Serving::new(other, Listen::Tcp6);
        let places = [encrypted(from.endpoint()), encrypted(other.endpoint())];
        let args = args.map(str::to_owned).into_iter().chain(places);
        let differ = qemu_img.run(args);
        assert_eq!(differ.status.code(), Some(1), "{}", differ.stderr);
        assert!(differ.stdout.contains("at offset 0!"), "{}", differ.stdout);
    });
}

#[test]
fn blocks_are_copied_from_the_middle() {
    with(Peer::QemuImg, |qemu_img| {
        let (spy, expected) = disk();
        let serving = Serving::disk(spy);
        let image = Image::raw(0);
        let output = format!("of={}", image.path().display());
        let input = format!("if={}", serving.uri("disk"));
        // The length counts from the start, and not from the offset.
        let args = [
            "dd", "-f", "raw", "-O", "raw", "bs=64k", "skip=40", "count=70",
        ];
        let _said = qemu_img
            .run(args.into_iter().chain([&*input, &output]))
            .expect_success();
        let found = fs::read(image.path()).unwrap();
        let start = 40 << 16;
        assert_same(&found, &expected[start..start + (30 << 16)], 40 << 16);
    });
}

#[test]
fn benchmarks_reach_the_storage_with_every_request() {
    with(Peer::QemuImg, |qemu_img| {
        let spy = Spy::new(8 * MIB);
        let serving = Serving::disk(Arc::clone(&spy) as _);
        let uri = serving.uri("disk");
        let bench = |options: &[&str]| {
            let args = ["bench", "-f", "raw", "-t", "none", "-c", "500", "-d", "32"];
            let _said = qemu_img
                .run([&args[..], options, &[&uri]].concat())
                .expect_success();
            spy.calls()
        };
        let calls = bench(&[
            "-s",
            "8k",
            "-S",
            "12k",
            "-w",
            "--pattern=90",
            "--flush-interval=50",
        ]);
        let writes = calls
            .iter()
            .filter(|call| matches!(call, Call::Write { len: 8192, .. }));
        assert_eq!(writes.count(), 500);
        let flushes = calls.iter().filter(|call| **call == Call::Flush).count();
        assert!(flushes >= 10, "{flushes}");
        let mut expected = vec![0; 8 << 20];
        for n in 0..500 {
            fill(&mut expected, n * 12 * KIB, 8 * KIB, 90);
        }
        assert_same(&spy.contents(), &expected, 0);

        let calls = bench(&["-s", "8k", "-S", "12k"]);
        let bytes = |call: &Call| match call {
            Call::Read { len, .. } => *len,
            _ => 0,
        };
        assert!(calls.iter().map(bytes).sum::<u64>() >= 500 * 8 * KIB);
    });
}

#[test]
fn an_export_holds_an_image_of_qemus_own_format() {
    with(Peer::QemuImg, |qemu_img| {
        let Some(image) = Image::qcow2(4 * MIB) else {
            return;
        };
        let Some(qemu_io) = require(Peer::QemuIo) else {
            return;
        };
        let file = fs::read(image.io("write -P 5 1M 64k").path()).unwrap();
        let spy = Spy::new(8 * MIB);
        spy.put(0, &file);
        let serving = Serving::disk(Arc::clone(&spy) as _);
        let uri = serving.uri("disk");
        let io = |command: &str| {
            let said = qemu_io
                .run(["-f", "qcow2", "-c", command, &uri])
                .expect_success();
            assert!(!said.contains("failed"), "{said}");
        };
        io("read -P 5 1M 64k");
        io("write -P 6 2M 100k");
        io("read -P 6 2M 100k");
        io("read -P 0 3M 64k");
        let said = qemu_img
            .run(["check", "-f", "qcow2", &uri])
            .expect_success();
        assert!(said.contains("No errors were found"), "{said}");
    });
}

#[test]
fn an_export_is_the_base_of_an_overlay() {
    with(Peer::QemuImg, |qemu_img| {
        let Some(qemu_io) = require(Peer::QemuIo) else {
            return;
        };
        let (spy, mut expected) = disk();
        let serving = Serving::disk(Arc::clone(&spy) as _);
        let overlay = Image::raw(0);
        let path = overlay.path();
        let path = path.to_str().unwrap();
        let create = ["create", "-q", "-f", "qcow2", "-F", "raw", "-b"];
        let uri = serving.uri("disk");
        let _said = qemu_img
            .run([&create[..], &[&uri, path]].concat())
            .expect_success();
        let write = ["-f", "qcow2", "-c", "write -P 7 3500k 1M", path];
        let _said = qemu_io.run(write).expect_success();
        assert_same(&spy.contents(), &expected, 0);

        let _said = qemu_img.run(["commit", "-q", path]).expect_success();
        fill(&mut expected, 3500 * KIB, MIB, 7);
        assert_same(&spy.contents(), &expected, 0);
    });
}

#[test]
fn a_list_describes_every_export_in_full() {
    with(Peer::QemuNbd, |qemu_nbd| {
        let certificates = Certificates::new();
        let spy = Spy::over(Memory::new(4 * MIB).with_description("the disk itself"));
        let exports = NamedExports::new()
            .with(name("disk"), spy)
            .with_tls_only(name("secret"), Arc::new(Memory::new(MIB).read_only()));
        let server = Server::new(exports).offer_tls(&tls(&certificates)).unwrap();
        let serving = Serving::new(server, Listen::Tcp4);
        let address = serving.endpoint().address();
        let (host, port) = (address.ip().to_string(), address.port().to_string());
        let list = ["--list", "-b", &host, "-p", &port];

        let said = qemu_nbd.run(list).expect_success();
        for line in [
            "exports available: 1",
            "export: 'disk'",
            "description: the disk itself",
            "size:  4194304",
            "opt block: 4096",
            "max block: 33554432",
            "available meta contexts: 2",
            "base:allocation",
            PARITY,
        ] {
            assert!(
                said.lines().any(|said| said.trim() == line),
                "{line}: {said}"
            );
        }
        let flags = said.lines().find(|line| line.contains("flags:")).unwrap();
        for flag in [
            "flush",
            "fua",
            "rotational",
            "trim",
            "zeroes",
            "df",
            "multi",
            "cache",
            "fast-zero",
        ] {
            assert!(flags.contains(flag), "{flags}");
        }
        assert!(!flags.contains("readonly"), "{flags}");

        let object = credentials(&certificates);
        let tls = ["--object", &object, "--tls-creds", "tls"];
        let said = qemu_nbd.run(list.iter().chain(&tls)).expect_success();
        assert!(said.contains("exports available: 2") && said.contains("export: 'secret'"));
        assert!(said.contains("readonly"), "{said}");
    });
}

#[test]
fn a_list_may_have_thousands_of_exports() {
    with(Peer::QemuNbd, |qemu_nbd| {
        let serving = Serving::new(many(5_000), Listen::Unix);
        let uri = serving.uri("");
        let socket = uri.split_once("socket=").unwrap().1;
        let said = qemu_nbd.run(["--list", "-k", socket]).expect_success();
        let names = said.lines().filter(|line| line.starts_with(" export: "));
        assert_eq!(names.count(), 5_000);
    });
}
