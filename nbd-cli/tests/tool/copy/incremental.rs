//! Full and incremental copies of a disk that QEMU changes meanwhile.

use super::*;
use interop::{MIB, StorageDaemon, run};
use serde_json::{Value, json};

const SIZE: u64 = 64 * MIB;

/// QEMU with a disk and a server for it.
struct Qemu {
    daemon: StorageDaemon,
    image: Image,
    socket: PathBuf,
}

impl Qemu {
    fn start(directory: &TempDir) -> Option<Self> {
        let image = Image::qcow2(SIZE)?;
        let mut daemon = StorageDaemon::start()?;
        let file = json!({ "driver": "file", "filename": image.path() });
        let disk = json!({ "driver": "qcow2", "node-name": "disk", "file": file });
        daemon.execute("blockdev-add", &disk);
        let socket = directory.path().join("socket");
        let address = json!({ "type": "unix", "data": { "path": socket } });
        let server = json!({ "addr": address, "max-connections": 0 });
        daemon.execute("nbd-server-start", &server);
        Some(Self {
            daemon,
            image,
            socket,
        })
    }

    /// Exports a node, with bitmaps.
    fn export(&mut self, node: &str, name: &str, writable: bool, bitmaps: &Value) -> String {
        let export = json!({
            "type": "nbd", "id": name, "name": name, "node-name": node,
            "writable": writable, "bitmaps": bitmaps,
        });
        self.daemon.execute("block-export-add", &export);
        format!("nbd+unix:///{name}?socket={}", self.socket.display())
    }

    fn stop_export(&mut self, name: &str) {
        self.daemon
            .execute("block-export-del", &json!({ "id": name }));
        self.daemon.wait_for("BLOCK_EXPORT_DELETED");
    }

    /// Changes the disk as a guest does.
    fn change(&mut self, commands: &[&str]) -> Option<()> {
        let qemu_io = require(Peer::QemuIo)?;
        let uri = self.export("disk", "guest", true, &json!([]));
        for command in commands {
            qemu_io
                .run(["-f", "raw", "-c", command, &uri])
                .expect_success();
        }
        self.stop_export("guest");
        Some(())
    }

    fn bitmap(&mut self, command: &str, name: &str) {
        let bitmap = json!({ "node": "disk", "name": name });
        self.daemon
            .execute(&format!("block-dirty-bitmap-{command}"), &bitmap);
    }
}

#[test]
fn a_chain_of_incremental_copies_restores_every_state() {
    run(|| {
        let directory = directory();
        let Some(mut qemu) = Qemu::start(&directory) else {
            return;
        };
        if qemu
            .change(&["write -P 1 0 8M", "write -P 2 40M 1M"])
            .is_none()
        {
            return;
        }
        let rounds: [&[&str]; 3] = [
            &["write -P 3 1M 1M", "write -P 4 20M 200k"],
            &["write -z 0 2M", "write -P 5 63M 1M"],
            &["write -P 6 20M 64k", "write -P 7 30M 1M", "discard 40M 1M"],
        ];
        qemu.bitmap("add", "b0");
        let uri = qemu.export("disk", "backup", false, &json!([]));
        let state = |round: usize| directory.path().join(format!("state{round}"));
        copy(&["--verify", &uri, text(&state(0))]).expect(0);
        qemu.stop_export("backup");

        for (round, commands) in rounds.iter().enumerate() {
            qemu.change(commands).unwrap();
            // Changes from here on belong to the next round.
            let (now, next) = (format!("b{round}"), format!("b{}", round + 1));
            qemu.bitmap("add", &next);
            qemu.bitmap("disable", &now);
            let uri = qemu.export("disk", "backup", false, &json!([now]));
            fs::copy(state(round), state(round + 1)).unwrap();
            let only = format!("qemu:dirty-bitmap:{now}");
            let target = state(round + 1);
            let copied = Running::start(&["--verify", "--only", &only, &uri, text(&target)]);
            copied.end().expect(0);
            // All of it, and not only the marked ranges.
            nbd(["compare", &uri, text(&target)]).expect(0);
            nbd(["compare", "-q", text(&state(round)), text(&target)]).expect(1);
            qemu.stop_export("backup");
        }
        let image = qemu.image.clone();
        qemu.daemon.quit();
        assert_identical("qcow2", text(&image.path()), text(&state(3)));
    });
}

#[test]
fn a_context_that_the_server_lacks_is_an_error() {
    run(|| {
        let (image, directory) = (Image::raw(MIB), directory());
        let Some(server) = Nbdkit::file(image.clone()).start() else {
            return;
        };
        fs::copy(image.path(), target(&directory)).unwrap();
        let only = "qemu:dirty-bitmap:none";
        let ended = copy(&["--only", only, &server.uri(""), text(&target(&directory))]);
        assert!(error(&ended).contains(only));
        ended.expect(2);
        // As a file, it has none at all.
        let ended = copy(&[
            "--only",
            only,
            text(&image.path()),
            text(&target(&directory)),
        ]);
        assert!(error(&ended).contains("has no meta contexts"), "{ended:#?}");
        ended.expect(2);
    });
}

#[test]
fn the_destination_of_a_partial_copy_has_to_exist() {
    run(|| {
        let directory = directory();
        let Some(server) = memory(MIB) else {
            return;
        };
        let missing = directory.path().join("missing");
        let only = "qemu:dirty-bitmap:none";
        copy(&["--only", only, &server.uri(""), text(&missing)]).expect(2);
        copy(&["--changed-only", &server.uri(""), text(&missing)]).expect(2);
        assert!(!missing.exists());
    });
}
