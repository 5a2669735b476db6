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
    io::{BufRead, BufReader, Read, Write},
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
        let unanswered = &format!("{silent} has not answered for 5s; the address")[..];
        let store = MemoryStore::s3(Duration::ZERO);
        let uri = store.uri("disk");
        let info: &[_] = &["info", &uri];
        let tries = [
            (refusing.as_str(), info, [refusing.as_str(), "refused"]),
            (
                "http://store.invalid",
                info,
                ["store.invalid", "cannot be reached"],
            ),
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

/// A store that answers every request so, with its address.
fn answering(answer: &'static str) -> String {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = BufReader::new(stream.unwrap());
            let (mut line, mut len) = (String::new(), 0);
            while line != "\r\n" && stream.read_line(&mut line).is_ok_and(|len| len > 2) {
                let lower = line.to_lowercase();
                if let Some(value) = lower.strip_prefix("content-length:") {
                    len = value.trim().parse().unwrap();
                }
                line.clear();
            }
            let _ = stream.read_exact(&mut vec![0; len]);
            let _ = stream.get_mut().write_all(answer.as_bytes());
        }
    });
    format!("http://{address}")
}

#[test]
fn failures_name_the_step_the_disk_the_store_the_cause_and_a_remedy_in_one_line() {
    run(|| {
        let store = MemoryStore::s3(Duration::ZERO);
        let uri = &store.uri("disk")[..];
        let absent = &store.uri("absent")[..];
        let (one, two) = (&format!("{uri}@one")[..], &format!("{uri}@two")[..]);
        let missing = &format!("{absent}@one")[..];
        let here = Store::in_memory(&store);
        succeeded(&nbd_with(&here, &["object", "create", uri, "1M"]));
        succeeded(&nbd_with(&here, &["object", "snapshot", one]));
        let address = &format!("http://{}", store.address())[..];
        let no_bucket = &answering(
            "HTTP/1.1 404 Not Found\r\nContent-Length: 40\r\nConnection: close\r\n\r\n\
             <Error><Code>NoSuchBucket</Code></Error>",
        )[..];
        let forbidden = &answering(
            "HTTP/1.1 403 Forbidden\r\nContent-Length: 49\r\nConnection: close\r\n\r\n\
             <Error><Code>SignatureDoesNotMatch</Code></Error>",
        )[..];
        let careless = &answering(
            "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nConnection: close\r\nETag: \"1\"\r\n\
             Last-Modified: Wed, 21 Oct 2015 07:28:00 GMT\r\n\r\n1",
        )[..];
        let busy = &answering(
            "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 36\r\nConnection: close\r\n\r\n\
             <Error><Code>SlowDown</Code></Error>",
        )[..];
        let credentials = "credentials are taken from AWS_ACCESS_KEY_ID";
        let made_first = "it has to be made first";
        let lists = &format!("`nbd object list {uri}` lists them")[..];
        let makes = &format!("`nbd object create {absent} SIZE` makes one")[..];
        let tries: &[(&str, &[&str], &[&str])] = &[
            (
                no_bucket,
                &["object", "create", uri, "1M"],
                &["cannot create", uri, no_bucket, "no bucket", made_first],
            ),
            (
                no_bucket,
                &["serve", uri],
                &["cannot open", uri, no_bucket, "no bucket", made_first],
            ),
            (
                no_bucket,
                &["object", "list", uri],
                &["cannot list", uri, no_bucket, "no bucket"],
            ),
            (
                forbidden,
                &["serve", uri],
                &[
                    "cannot open",
                    uri,
                    forbidden,
                    "403 Forbidden, SignatureDoesNotMatch",
                    credentials,
                ],
            ),
            (
                forbidden,
                &["object", "check", uri],
                &["cannot check", uri, forbidden, credentials],
            ),
            (
                careless,
                &["object", "create", uri, "1M"],
                &[
                    "cannot create",
                    uri,
                    careless,
                    "ignores conditions",
                    "another store",
                ],
            ),
            (
                busy,
                &["object", "info", uri],
                &[
                    "cannot look at",
                    uri,
                    busy,
                    "503 Service Unavailable, SlowDown",
                ],
            ),
            (
                "127.0.0.1:9",
                &["object", "info", uri],
                &["cannot use", uri, "127.0.0.1:9", "expected http://HOST"],
            ),
            (
                "https://127.0.0.1:1",
                &["object", "info", uri],
                &[
                    "cannot look at",
                    uri,
                    "https://127.0.0.1:1",
                    "refused",
                    "AWS_ENDPOINT",
                ],
            ),
            (
                address,
                &["object", "create", uri, "1M"],
                &["cannot create", uri, "there already", "nbd object delete"],
            ),
            (
                address,
                &["object", "snapshot", one],
                &["cannot take", one, "there already", "nbd object delete"],
            ),
            (
                address,
                &["object", "snapshot", missing],
                &["there is no disk at", makes],
            ),
            (
                address,
                &["object", "delete", two],
                &["there is no snapshot", two, lists],
            ),
            (
                address,
                &["serve", two],
                &["there is no snapshot", two, lists],
            ),
            (address, &["serve", absent], &["there is no disk at", makes]),
        ];
        thread::scope(|scope| {
            for (endpoint, args, words) in tries {
                let mut command = nbd();
                command.args(*args).envs(store.variables());
                command.env("AWS_ENDPOINT", endpoint);
                scope.spawn(move || {
                    let said = failed(&command.output().unwrap());
                    assert_eq!(said.trim_end().lines().count(), 1, "{said}");
                    for word in *words {
                        assert!(said.contains(word), "{word}: {said}");
                    }
                });
            }
        });
        // The words are those of `object_store`.
        for (word, allows) in [("", false), ("no", false), ("1", true), ("Yes", true)] {
            let mut command = nbd();
            command.args(["object", "info", uri]);
            command.envs(store.variables()).env("AWS_ALLOW_HTTP", word);
            if word.is_empty() {
                command.env_remove("AWS_ALLOW_HTTP");
            }
            let said = command.output().unwrap().stderr;
            let said = String::from_utf8_lossy(&said);
            let refused = said.contains("AWS_ALLOW_HTTP=true allows that");
            assert_eq!(refused, !allows, "{word}: {said}");
        }
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
        // The limits of cache, writes, map (16) and gets (4) are 36 MiB, payloads in flight 16, and the
        // process before its first request some 20 in a debug build. The rest is the allocator's.
        assert!(peak < 110, "peak memory {peak} MiB");
        serving.stop();
    });
}
