//! The clients of others.

use crate::support::{Serving, image};
use interop::{MIB, Peer, pattern, require, run};
use std::fs;

const SIZE: u64 = 8 * MIB;

#[test]
fn foreign_clients_use_a_served_disk() {
    run(|| {
        let serving = Serving::with(
            |dir| image(dir, "disk.img", 1, SIZE),
            "disk.img --description first --memory scratch=8M",
        );
        let serving = serving.ready();
        let uri = serving.uri("disk.img");
        let scratch = serving.uri("scratch");
        if let Some(nbdinfo) = require(Peer::NbdInfo) {
            let said = nbdinfo.run(["--list", &serving.uri("")]).expect_success();
            assert!(said.contains("export=\"disk.img\"") && said.contains("export=\"scratch\""));
            assert!(said.contains("description: first"), "{said}");
            let size = nbdinfo.run(["--size", &serving.uri("")]).expect_success();
            assert_eq!(size.trim(), SIZE.to_string());
        }
        if let Some(nbdcopy) = require(Peer::NbdCopy) {
            let copy = serving.path("copy");
            let copy = copy.to_str().unwrap();
            nbdcopy.run([&uri, copy]).expect_success();
            assert!(fs::read(copy).unwrap() == pattern(1, SIZE));
        }
        if let Some(qemu_img) = require(Peer::QemuImg) {
            let copy = serving.path("copy.qcow2");
            let copy = copy.to_str().unwrap();
            qemu_img
                .run(["convert", "-O", "qcow2", &uri, copy])
                .expect_success();
            qemu_img.run(["compare", &uri, copy]).expect_success();
        }
        if let Some(qemu_io) = require(Peer::QemuIo) {
            let commands = [
                "-c",
                "write -P 7 1M 64k",
                "-c",
                "flush",
                "-c",
                "read -P 7 1M 64k",
            ];
            let said = qemu_io.run(["-f", "raw"].iter().chain(&commands).chain([&&*scratch]));
            assert!(said.expect_success().contains("read 65536/65536 bytes"));
        }
        if let Some(fio) = require(Peer::Fio) {
            let uri = format!("--uri={scratch}");
            let options = "--name=job --ioengine=nbd --thread --iodepth=16 --size=2M --bs=4k \
                --rw=randwrite --verify=crc32c --do_verify=1 --verify_fatal=1 --verify_state_save=0";
            let options = options.split_whitespace();
            fio.run(options.chain([&*uri])).expect_success();
        }
        if let Some(nbd_client) = require(Peer::NbdClient) {
            let socket = serving.path("socket");
            let said = nbd_client
                .run(["-l", "-unix", socket.to_str().unwrap()])
                .expect_success();
            assert!(
                said.contains("disk.img") && said.contains("scratch"),
                "{said}"
            );
        }
        assert_eq!(serving.stop(), "");
    });
}
