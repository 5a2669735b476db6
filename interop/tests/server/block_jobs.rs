//! QEMU's block jobs push to our server and pull from it.

use std::{fs, path::Path, sync::Arc};

use crate::runtime::Server;
use interop::{
    Certificates, Endpoint, Image, KIB, Listen, MIB, StorageDaemon, assert_same, pattern, run,
};
use serde_json::{Value, json};

use crate::{
    chains::exercise,
    exports::{Call, Spy},
    qemu::mode,
    serving::{Serving, server, strict},
};

const SIZE: u64 = 16 * MIB;

/// Data with holes, and its contents.
fn disk() -> (Arc<Spy>, Vec<u8>) {
    let spy = Spy::new(SIZE);
    for n in 0..4 {
        spy.put(n * 4 * MIB, &pattern(n, 2 * MIB - n * 1000));
    }
    let contents = spy.contents();
    (spy, contents)
}

/// A local file of these contents, or of nothing but a hole.
fn file(contents: Option<&[u8]>) -> Image {
    let image = Image::raw(SIZE);
    if let Some(contents) = contents {
        fs::write(image.path(), contents).unwrap();
    }
    image
}

fn add_file(daemon: &mut StorageDaemon, node: &str, path: &Path) {
    let file = json!({ "driver": "file", "filename": path });
    add(daemon, node, file);
}

/// Adds "disk" of a server as a node, with the certificates of a client.
pub(crate) fn add_nbd(
    daemon: &mut StorageDaemon,
    node: &str,
    serving: &Serving,
    certificates: Option<&Certificates>,
) {
    let mut file = match serving.endpoint() {
        Endpoint::Unix(path) => json!({ "server": { "type": "unix", "path": path } }),
        endpoint => {
            let address = endpoint.address();
            let (host, port) = (address.ip().to_string(), address.port().to_string());
            json!({ "server": { "type": "inet", "host": host, "port": port } })
        }
    };
    file["driver"] = json!("nbd");
    file["export"] = json!("disk");
    if let Some(certificates) = certificates {
        let object = format!("tls-{node}");
        let credentials = json!({
            "qom-type": "tls-creds-x509",
            "id": object,
            "endpoint": "client",
            "dir": certificates.dir(),
        });
        daemon.execute("object-add", &credentials);
        file["tls-creds"] = json!(object);
        file["tls-hostname"] = json!("localhost");
    }
    add(daemon, node, file);
}

fn add(daemon: &mut StorageDaemon, node: &str, mut file: Value) {
    file["discard"] = json!("unmap");
    let node = json!({ "node-name": node, "driver": "raw", "discard": "unmap", "file": file });
    daemon.execute("blockdev-add", &node);
}

/// Waits for a mirror to have caught up, and ends it.
fn complete(daemon: &mut StorageDaemon, job: &str) {
    daemon.wait_for("BLOCK_JOB_READY");
    daemon.execute("job-complete", &json!({ "id": job }));
    finish(daemon);
}

/// Waits for the end of a job, and for it to have gone well.
fn finish(daemon: &mut StorageDaemon) {
    let completed = daemon.wait_for("BLOCK_JOB_COMPLETED");
    assert!(completed["error"].is_null(), "{completed}");
    assert_eq!(completed["offset"], completed["len"]);
}

fn encrypted(spy: &Arc<Spy>, certificates: &Certificates) -> Server {
    let server = server(Arc::clone(spy) as _);
    server.require_tls(&strict(certificates)).unwrap()
}

fn mirror(from: &str, to: &str, more: &Value) -> Value {
    let mut job = json!({ "job-id": "job", "device": from, "target": to, "sync": "full" });
    for (key, value) in more.as_object().unwrap() {
        job[key] = value.clone();
    }
    job
}

#[test]
fn a_file_is_mirrored_to_the_server() {
    run(|| {
        let Some(mut daemon) = StorageDaemon::start() else {
            return;
        };
        let (_, contents) = disk();
        let image = file(Some(&contents));
        let spy = Spy::new(SIZE);
        spy.put(0, &pattern(9, SIZE));
        let serving = Serving::disk(Arc::clone(&spy) as _);
        add_file(&mut daemon, "from", &image.path());
        add_nbd(&mut daemon, "to", &serving, None);
        daemon.execute("blockdev-mirror", &mirror("from", "to", &json!({})));
        complete(&mut daemon, "job");
        assert_same(&spy.contents(), &contents, 0);
        let modes = [mode(daemon.program())];
        daemon.quit();
        assert!(spy.calls().contains(&Call::Flush));
        assert_eq!(serving.stop().modes(), modes);
    });
}

#[test]
fn the_server_is_mirrored_to_a_file() {
    run(|| {
        let Some(mut daemon) = StorageDaemon::start() else {
            return;
        };
        let (spy, contents) = disk();
        let serving = Serving::new(server(spy), Listen::Tcp4);
        let image = file(None);
        add_nbd(&mut daemon, "from", &serving, None);
        add_file(&mut daemon, "to", &image.path());
        daemon.execute("blockdev-mirror", &mirror("from", "to", &json!({})));
        complete(&mut daemon, "job");
        daemon.quit();
        assert_same(&fs::read(image.path()).unwrap(), &contents, 0);
    });
}

#[test]
fn one_server_is_mirrored_to_another_over_tls() {
    run(|| {
        let Some(mut daemon) = StorageDaemon::start() else {
            return;
        };
        let certificates = Certificates::new();
        let (source, contents) = disk();
        let from = Serving::new(encrypted(&source, &certificates), Listen::Unix);
        let target = Spy::new(SIZE);
        let to = Serving::new(encrypted(&target, &certificates), Listen::Tcp6);
        add_nbd(&mut daemon, "from", &from, Some(&certificates));
        add_nbd(&mut daemon, "to", &to, Some(&certificates));
        let job = json!({ "copy-mode": "write-blocking", "granularity": 64 * KIB });
        daemon.execute("blockdev-mirror", &mirror("from", "to", &job));
        complete(&mut daemon, "job");
        daemon.quit();
        assert_same(&target.contents(), &contents, 0);
        for serving in [from, to] {
            assert!(
                serving
                    .stop()
                    .entered
                    .iter()
                    .all(|entered| entered.encrypted)
            );
        }
    });
}

/// Lets other clients write to a node, at the URI returned, whose socket is in `dir`.
pub(crate) fn export(daemon: &mut StorageDaemon, node: &str, dir: &Path) -> String {
    let socket = dir.join("socket");
    let address = json!({ "type": "unix", "data": { "path": socket } });
    daemon.execute("nbd-server-start", &json!({ "addr": address }));
    let export = json!({ "type": "nbd", "id": "export", "node-name": node, "writable": true });
    daemon.execute("block-export-add", &export);
    Endpoint::Unix(socket).uri(node)
}

#[test]
fn a_disk_is_mirrored_while_it_is_in_use() {
    run(|| {
        let Some(mut daemon) = StorageDaemon::start() else {
            return;
        };
        let (_, contents) = disk();
        let image = file(Some(&contents));
        let spy = Spy::new(SIZE);
        let serving = Serving::disk(Arc::clone(&spy) as _);
        add_file(&mut daemon, "from", &image.path());
        add_nbd(&mut daemon, "to", &serving, None);
        let dir = tempfile::Builder::new().prefix("nbd-").tempdir().unwrap();
        let uri = export(&mut daemon, "from", dir.path());
        // Slowly, so that it is not done before the first write.
        let slowly = json!({ "speed": 8 * MIB });
        daemon.execute("blockdev-mirror", &mirror("from", "to", &slowly));
        if exercise(&uri, "None").is_none() {
            return;
        }
        let fast = json!({ "device": "job", "speed": 0 });
        daemon.execute("block-job-set-speed", &fast);
        complete(&mut daemon, "job");
        daemon.quit();
        let found = fs::read(image.path()).unwrap();
        assert!(found != contents);
        assert_same(&spy.contents(), &found, 0);
    });
}

#[test]
fn the_server_is_backed_up_and_restored() {
    run(|| {
        let Some(mut daemon) = StorageDaemon::start() else {
            return;
        };
        let (source, contents) = disk();
        let from = Serving::disk(source);
        let image = file(None);
        let target = Spy::new(SIZE);
        let to = Serving::disk(Arc::clone(&target) as _);
        add_nbd(&mut daemon, "disk", &from, None);
        add_file(&mut daemon, "backup", &image.path());
        add_nbd(&mut daemon, "restored", &to, None);
        for (from, to) in [("disk", "backup"), ("backup", "restored")] {
            daemon.execute("blockdev-backup", &mirror(from, to, &json!({})));
            finish(&mut daemon);
        }
        daemon.quit();
        assert_same(&fs::read(image.path()).unwrap(), &contents, 0);
        assert_same(&target.contents(), &contents, 0);
    });
}

#[test]
fn an_overlay_pulls_from_the_server_until_it_needs_it_no_more() {
    run(|| {
        let Some(mut daemon) = StorageDaemon::start() else {
            return;
        };
        let Some(overlay) = Image::qcow2(SIZE) else {
            return;
        };
        let (spy, contents) = disk();
        let serving = Serving::disk(spy);
        add_nbd(&mut daemon, "base", &serving, None);
        let top = json!({
            "node-name": "top",
            "driver": "qcow2",
            "file": { "driver": "file", "filename": overlay.path() },
            "backing": "base",
        });
        daemon.execute("blockdev-add", &top);
        daemon.execute("block-stream", &json!({ "job-id": "job", "device": "top" }));
        finish(&mut daemon);
        daemon.quit();
        drop(serving);

        let image = file(None);
        let convert = ["convert", "-f", "qcow2", "-O", "raw"].map(Path::new);
        let (from, to) = (overlay.path(), image.path());
        let qemu_img = interop::require(interop::Peer::QemuImg).unwrap();
        let _said = qemu_img
            .run(convert.into_iter().chain([&*from, &*to]))
            .expect_success();
        assert_same(&fs::read(to).unwrap(), &contents, 0);
    });
}

#[test]
fn a_job_that_runs_out_of_room_says_so() {
    run(|| {
        let Some(mut daemon) = StorageDaemon::start() else {
            return;
        };
        let (source, _) = disk();
        let from = Serving::disk(source);
        let small = nbd_io::Memory::new(SIZE).with_limit(MIB);
        let to = Serving::disk(Arc::new(small));
        add_nbd(&mut daemon, "from", &from, None);
        add_nbd(&mut daemon, "to", &to, None);
        daemon.execute("blockdev-mirror", &mirror("from", "to", &json!({})));
        let failed = daemon.wait_for("BLOCK_JOB_COMPLETED");
        assert_eq!(failed["error"], "No space left on device");
        daemon.quit();
    });
}
