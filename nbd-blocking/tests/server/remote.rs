//! A proxy: clients of ours at a server of ours whose export is another server's.

use crate::{
    serving::commands::exercise,
    support::{Running, modes, soon},
};
use interop::{Image, Nbdkit, QemuNbd};
use nbd_blocking::{
    BlockSizes, Client, CommandFlags, ConnectOptions, ContextName, Errno, Error, Server,
    exports::{Failure, Remote},
};
use nbd_io::{Fault, Faults, Faulty, Memory};
use nbd_proto::Command;
use std::sync::Arc;

fn proxy(client: Client) -> Running {
    Running::new(Server::single(Arc::new(Remote::new(client))))
}

fn contents(client: &Client, len: usize) -> Vec<u8> {
    let mut bytes = vec![0xee; len];
    client.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

#[test]
fn every_command_goes_through_a_proxy_in_every_layout_of_replies() {
    soon(|| {
        let [_, structured, extended] = modes();
        for upstream in [structured, extended] {
            let server = Running::new(Server::single(Arc::new(Memory::new(64 << 20))));
            let direct = server.connect(&upstream);
            let proxy = proxy(server.connect(&upstream));
            for options in modes() {
                let client = proxy.connect(&options);
                exercise(&client);
                assert!(contents(&client, 8 << 20) == contents(&direct, 8 << 20));
                client.trim(0, client.size(), CommandFlags::NONE).unwrap();
                client.disconnect().unwrap();
            }
        }
    });
}

#[test]
fn a_proxy_announces_the_same_as_its_server() {
    soon(|| {
        let sizes = BlockSizes::new(512, 8192, 1 << 20).unwrap();
        let disk = Memory::new(5000).with_block_sizes(sizes);
        let disk = Arc::new(disk.with_description("far away").read_only());
        let server = Running::new(Server::single(disk));
        let options = ConnectOptions::new().context(ContextName::base_allocation());
        let direct = server.connect(&options);
        let client = proxy(server.connect(&options)).connect(&options);
        assert_eq!((client.size(), client.export()), (4608, direct.export()));
        assert_eq!(client.export().blocks(), sizes);
        assert_eq!(client.contexts(), direct.contexts());
        // Contexts that were not selected are not offered.
        let plain = proxy(server.connect(&ConnectOptions::new())).connect(&options);
        assert!(plain.contexts().is_empty());
    });
}

#[test]
fn a_proxy_passes_on_the_errors_of_its_server() {
    soon(|| {
        let faults = Faults::new();
        let disk = Faulty::new(Arc::new(Memory::new(1 << 20)), faults.clone());
        let server = Running::new(Server::single(Arc::new(disk)));
        let options = ConnectOptions::new().context(ContextName::base_allocation());
        let remote = Remote::new(server.connect(&options));
        let upstream = remote.client().clone();
        let client = Running::new(Server::single(Arc::new(remote))).connect(&options);
        let scratch = |command, errno| Fault::failure(errno, "a scratch").on(command);
        for (command, errno) in [
            (Command::Read, Errno::Io),
            (Command::Write, Errno::NoSpc),
            (Command::Flush, Errno::Io),
            (Command::Trim, Errno::Perm),
            (Command::Cache, Errno::Inval),
            (Command::WriteZeroes, Errno::NotSup),
            (Command::BlockStatus, Errno::Io),
        ] {
            faults.add(scratch(command, errno));
            let none = CommandFlags::NONE;
            let failed = match command {
                Command::Read => client.read_exact_at(&mut [0; 10], 4096),
                Command::Write => client.write_all_at(&[1; 10], 4096),
                Command::Flush => client.flush(),
                Command::Trim => client.trim(0, 10, none),
                Command::Cache => client.cache(0, 10),
                Command::WriteZeroes => client.write_zeroes(0, 10, CommandFlags::FAST_ZERO),
                _ => client.block_status(0, 10, none).map(drop),
            };
            faults.clear();
            let Err(Error::Failed { source, .. }) = failed else {
                panic!("{command}: {failed:?}");
            };
            let Failure {
                errno: got,
                message,
                ..
            } = source;
            assert_eq!((got, message.as_str()), (errno, "a scratch"), "{command}");
        }
        // The server is gone, and the proxy goes on.
        server.stop();
        let error = client.flush().unwrap_err();
        assert_eq!(error.errno(), Some(Errno::Io), "{error}");
        assert!(upstream.is_lost() && !client.is_lost());
        assert!(
            error.to_string().contains("the connection is over"),
            "{error}"
        );
    });
}

#[test]
fn a_client_finds_the_same_through_a_proxy_to_nbdkit() {
    soon(|| {
        let sparse = Nbdkit::new("sparse-random")
            .param("size=16M")
            .param("seed=1");
        let sparse = sparse.param("percent=50").param("runlength=65536");
        let Some(server) = sparse.start() else {
            return;
        };
        compare(&server.uri(""), &[ContextName::base_allocation()], 16 << 20);
    });
}

#[test]
fn a_client_finds_all_contexts_of_qemu_through_a_proxy() {
    soon(|| {
        let Some(below) = Image::qcow2(1 << 20) else {
            return;
        };
        let below = below.io("write -P 1 0 64k").io("write -z 128k 64k");
        let image = below.overlay().expect("it was there before");
        let image = image
            .bitmap("b")
            .io("write -P 2 256k 100k")
            .stop_bitmap("b");
        let qemu = QemuNbd::new(image).read_only().allocation_depth();
        let Some(server) = qemu.bitmap("b").shared(0).start() else {
            return;
        };
        let contexts = [
            ContextName::dirty_bitmap("b").unwrap(),
            ContextName::base_allocation(),
            ContextName::allocation_depth(),
        ];
        compare(&server.uri(""), &contexts, 1 << 20);
    });
}

/// Compares the contents of an export at a server and through a proxy.
fn compare(uri: &str, contexts: &[ContextName], len: usize) {
    let select =
        |options: ConnectOptions, name: &ContextName| options.require_context(name.clone());
    let options = contexts.iter().fold(ConnectOptions::new(), select);
    let direct = options.connect(uri).unwrap();
    let proxy = proxy(options.connect(uri).unwrap());
    let client = proxy.connect(&options);
    assert_eq!(client.size(), direct.size());
    assert_eq!(
        client.block_sizes().minimum(),
        direct.block_sizes().minimum()
    );
    assert!(contents(&client, len) == contents(&direct, len));
    for name in contexts {
        let merged = |client: &Client| {
            let mut merged: Vec<(u64, u64)> = Vec::new();
            for run in client.extents(0..len as u64) {
                let run = run.unwrap();
                let status = run.status_of(name).unwrap();
                match merged.last_mut() {
                    Some((len, last)) if *last == status => *len += run.len,
                    _ => merged.push((run.len, status)),
                }
            }
            merged
        };
        let expected = merged(&direct);
        assert!(expected.len() > 1, "{name}: {expected:?}");
        assert_eq!(merged(&client), expected, "{name}");
    }
}
