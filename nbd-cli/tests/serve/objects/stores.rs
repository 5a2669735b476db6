//! Disks in stores that speak HTTP.

use super::{
    connect,
    killed::{kills, nothing_is_lost},
    read,
};
use crate::support::{Serving, failed, nbd, succeeded};
use bytes::Bytes;
use futures_util::stream::{self, StreamExt, TryStreamExt};
use interop::{MIB, MemoryStore, ObjectStoreServer, Peer, Port, pattern, require, run};
use std::{
    env, fs,
    net::{Ipv4Addr, TcpListener},
    process::{self, Output},
    thread,
    time::{Duration, Instant},
};

/// A part of a store, and the variables by which programs find it.
struct Store {
    uri: String,
    variables: Vec<(&'static str, String)>,
}

impl Store {
    fn of(server: &ObjectStoreServer) -> Self {
        Self {
            uri: server.uri("some"),
            variables: server.variables(),
        }
    }

    fn in_memory(server: &MemoryStore) -> Self {
        Self {
            uri: server.uri("some"),
            variables: server.variables(),
        }
    }

    fn uri(&self, disk: &str) -> String {
        format!("{}/{disk}", self.uri)
    }

    fn variables(&self) -> Vec<(&'static str, String)> {
        self.variables.clone()
    }
}

/// Runs `nbd` with the store's variables.
fn nbd_with(store: &Store, args: &[&str]) -> Output {
    nbd().args(args).envs(store.variables()).output().unwrap()
}

/// A server of a disk of the store.
fn serve(store: &Store, args: &[&str]) -> Serving {
    serve_with(store.variables(), store.uri("disk"), args)
}

/// A server of a disk of the store that these variables lead to.
fn serve_with(variables: Vec<(&str, String)>, uri: String, args: &[&str]) -> Serving {
    let serving = Serving::prepared(
        |_| {},
        |command, dir| {
            command
                .arg("--unix")
                .arg(dir.join("socket"))
                .arg(uri)
                .args(args)
                .envs(variables);
        },
    );
    serving.ready()
}

/// Everything that the tool does with a disk.
fn use_disk(store: &Store) {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("image");
    let mut data = vec![0; 9 << 20];
    data[3 << 20..5 << 20].copy_from_slice(&pattern(1, 2 * MIB));
    fs::write(&image, &data).unwrap();
    let (image, uri) = (image.to_str().unwrap(), store.uri("copy"));
    succeeded(&nbd_with(store, &["copy", image, &uri]));
    succeeded(&nbd_with(store, &["compare", image, &uri]));
    let map = succeeded(&nbd_with(store, &["map", &uri]));
    assert!(map.contains("hole"), "{map}");
    let snapshot = format!("{uri}@one");
    succeeded(&nbd_with(store, &["object", "snapshot", &snapshot]));
    let listed = succeeded(&nbd_with(store, &["object", "list", &uri]));
    assert_eq!(listed, "one\n");
    let checked = succeeded(&nbd_with(store, &["object", "check", &snapshot]));
    assert!(checked.ends_with("all are whole\n"), "{checked}");
    succeeded(&nbd_with(store, &["object", "gc", "--age", "0.001", &uri]));
    succeeded(&nbd_with(store, &["compare", image, &snapshot]));
    succeeded(&nbd_with(store, &["object", "delete", &uri]));
    assert!(!nbd_with(store, &["info", &uri]).status.success());

    let first = serve(store, &["--create", "1T"]);
    let old = connect(&first, "disk");
    old.write_all_at(&pattern(1, MIB), 0).unwrap();
    old.flush().unwrap();
    let second = serve(store, &[]);
    assert!(read(&connect(&second, ""), 0, 1 << 20) == pattern(1, MIB));
    let _ = old.write_all_at(&pattern(2, MIB), 0);
    assert!(old.flush().is_err());
    second.stop();
}

/// Kills servers of the disk while it is used, and deletes it.
fn kill_servers(store: &Store, least: u64) {
    let uri = store.uri("disk");
    succeeded(&nbd_with(store, &["object", "delete", &uri]));
    let begin = || serve(store, &["--create", "4M", "--dirty", "1M"]);
    nothing_is_lost(begin, kills(least));
    let checked = succeeded(&nbd_with(store, &["object", "check", &uri]));
    assert!(checked.ends_with("all are whole\n"), "{checked}");
    succeeded(&nbd_with(store, &["object", "delete", &uri]));
}

#[test]
fn disks_are_in_a_store_for_s3_and_nothing_flushed_is_lost_when_a_server_is_killed() {
    run(|| {
        let Some(server) = ObjectStoreServer::s3() else {
            return;
        };
        let store = Store::of(&server);
        use_disk(&store);
        if require(Peer::NbdInfo).is_some() && require(Peer::NbdCopy).is_some() {
            let script = "nbdinfo \"$NBD_URI\" && nbdcopy \"$NBD_URI\" copy && \
                          nbdcopy copy \"$NBD_URI\" && rm copy";
            let uri = store.uri("other");
            let args = ["serve", &uri, "--create", "1G", "--", "sh", "-c", script];
            succeeded(&nbd_with(&store, &args));
        }
        kill_servers(&store, 5);
    });
}

#[test]
fn disks_are_in_a_store_for_azure() {
    run(|| {
        if let Some(server) = ObjectStoreServer::azure() {
            let store = Store::of(&server);
            use_disk(&store);
            kill_servers(&store, 3);
        }
    });
}

#[test]
fn disks_are_in_a_store_for_the_xml_api_of_google() {
    run(|| {
        let server = MemoryStore::gcs(Duration::from_millis(1));
        let store = Store::in_memory(&server);
        use_disk(&store);
        kill_servers(&store, 5);
    });
}

#[test]
#[ignore = "takes NBD_STORE=s3://BUCKET or another store, as with interop/ceph/with-gateway.sh"]
fn disks_are_in_the_store_of_the_environment() {
    run(|| {
        let bucket = env::var("NBD_STORE").expect("NBD_STORE is the URI of a bucket");
        let store = Store {
            uri: format!("{bucket}/nbd-test-{}", process::id()),
            variables: Vec::new(),
        };
        use_disk(&store);
        kill_servers(&store, 5);
    });
}

#[test]
fn a_store_that_is_not_there_is_reported_soon() {
    run(|| {
        let refusing = format!("http://{}", Port::new(Ipv4Addr::LOCALHOST).address());
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        // The system accepts connections for it.
        let silent = format!("http://{}", listener.local_addr().unwrap());
        let unanswered = "the store has not answered for 5s";
        let store = MemoryStore::s3(Duration::ZERO);
        let uri = store.uri("disk");
        let info: &[_] = &["info", &uri];
        let tries = [
            (refusing.as_str(), info, [refusing.as_str(), "refused"]),
            ("http://store.invalid", info, ["store.invalid", "dns error"]),
            (&silent, info, [&uri, unanswered]),
            (
                &silent,
                &["serve", &uri, "--create", "1M"],
                [&uri, unanswered],
            ),
            (
                &silent,
                &["object", "create", &uri, "1M"],
                [&uri, unanswered],
            ),
        ];
        thread::scope(|scope| {
            for (endpoint, args, causes) in tries {
                let mut command = nbd();
                command.args(args).envs(store.variables());
                command.env("AWS_ENDPOINT", endpoint);
                scope.spawn(move || {
                    let start = Instant::now();
                    let said = failed(&command.output().unwrap());
                    assert!(start.elapsed().as_secs() < 20, "{:?}", start.elapsed());
                    for cause in causes {
                        assert!(said.contains(cause), "{said}");
                    }
                });
            }
        });
    });
}

/// 64 reads and writes at once, of 4 to 256 KiB, everywhere on a sparse disk of a terabyte.
#[cfg(target_os = "linux")]
async fn load(uri: &str, requests: u32) {
    let options = nbd_tokio::ConnectOptions::new().local_files(true);
    let client = options.connect_uri(&uri.parse().unwrap()).await.unwrap();
    let data = Bytes::from(pattern(1, MIB));
    let work = interop::mixed_load(requests, 256).map(async |access| match access.is_write {
        true => client.write(data.slice(..access.len), access.offset).await,
        false => client.read(access.offset, access.len).await.map(drop),
    });
    let work = stream::iter(work).buffer_unordered(64);
    work.try_collect::<()>().await.unwrap();
    client.flush().await.unwrap();
    client.disconnect().await.unwrap();
}

#[cfg(target_os = "linux")]
#[test]
fn a_terabyte_is_served_in_the_memory_that_its_limits_allow() {
    run(|| {
        let store = MemoryStore::s3(Duration::from_millis(5));
        let limits = ["--create", "1T", "--cache", "8M", "--dirty", "8M"];
        let serving = serve_with(store.variables(), store.uri("disk"), &limits);
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(load(&serving.uri("disk"), 2000));
        let traffic = store.traffic();
        assert!(traffic.received > 64 * MIB, "{traffic:?}");
        assert!(traffic.sent > 16 * MIB, "{traffic:?}");
        let peak = interop::peak_memory(serving.id()).unwrap() / 1024;
        eprintln!("peak memory {peak} MiB: {traffic:?}");
        assert!(peak < 160, "peak memory {peak} MiB");
        serving.stop();
    });
}
