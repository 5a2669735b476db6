//! A proxy whose client is asynchronous, too.

use super::{
    ConnectOptions, Remote, Server, block_on,
    serving::{
        commands::exercise,
        support::{Running, modes, soon},
    },
};
use nbd_blocking::{CommandFlags, ContextName, Errno, Error};
use nbd_io::{Fault, Faults, Faulty, Memory};
use nbd_proto::Command;
use std::sync::Arc;

fn proxy(server: &Running) -> Running {
    let uri = format!("nbd+unix:///?socket={}", server.unix.display());
    let options = ConnectOptions::new().context(ContextName::base_allocation());
    let client = block_on(options.connect(&uri)).unwrap();
    Running::new(Server::single_async(Remote::new(client)))
}

#[test]
fn every_command_goes_through_an_asynchronous_proxy_in_every_layout_of_replies() {
    soon(|| {
        let server = Running::new(Server::single(Arc::new(Memory::new(64 << 20))));
        let proxy = proxy(&server);
        for options in modes() {
            let client = proxy.connect(&options);
            exercise(&client);
            let none = CommandFlags::NONE;
            client.write_zeroes(0, client.size(), none).unwrap();
            client.disconnect().unwrap();
        }
        assert_eq!(proxy.stop(), ["the client disconnected"; 3]);
        server.stop();
    });
}

#[test]
fn an_asynchronous_proxy_passes_on_descriptions_and_errors() {
    soon(|| {
        let faults = Faults::new();
        let disk = Memory::new(1 << 20).with_description("far away");
        let disk = Faulty::new(Arc::new(disk), faults.clone());
        let server = Running::new(Server::single(Arc::new(disk)));
        let proxy = proxy(&server);
        let options = &modes()[2];
        let (client, direct) = (proxy.connect(options), server.connect(options));
        assert_eq!(client.export(), direct.export());
        assert_eq!(client.contexts(), direct.contexts());
        for command in [Command::Read, Command::Write, Command::Flush] {
            faults.add(Fault::failure(Errno::NoSpc, "a scratch").on(command));
            let failed = match command {
                Command::Read => client.read_exact_at(&mut [0; 512], 0),
                Command::Write => client.write_all_at(&[0; 512], 0),
                _ => client.flush(),
            };
            let Err(Error::Failed { source, .. }) = failed else {
                panic!("{failed:?}");
            };
            assert_eq!(
                (source.errno, source.message.as_str()),
                (Errno::NoSpc, "a scratch")
            );
            faults.clear();
        }
        client.disconnect().unwrap();
        proxy.stop();
        server.stop();
    });
}
