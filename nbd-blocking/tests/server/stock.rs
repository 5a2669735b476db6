//! Exports that are composed of others, as clients see them.

use crate::{
    serving::commands::exercise,
    support::{Running, modes, soon},
};
use nbd_blocking::{ConnectOptions, Server};
use nbd_io::{Directory, Export, File, Memory, Overlay};
use std::{fs, sync::Arc};

#[test]
fn clients_write_over_an_export_that_stays_as_it_is_until_it_is_committed() {
    soon(|| {
        let base = Arc::new(Memory::new(64 << 20));
        let layer = tempfile::tempfile().unwrap();
        layer.set_len(64 << 20).unwrap();
        let layer = Arc::new(File::from_std(layer).unwrap());
        let overlay = Arc::new(Overlay::new(base.clone(), layer).unwrap());
        let running = Running::new(Server::single(overlay.clone()));
        for options in modes() {
            let client = running.connect(&options);
            exercise(&client);
            assert!(overlay.changed() > 0 && base.allocated() == 0);
            client.disconnect().unwrap();
            overlay.discard();
        }
        let client = running.connect(&ConnectOptions::new());
        client.write_all_at(b"hello", 4096).unwrap();
        assert_eq!(overlay.commit().unwrap(), u64::from(overlay.block_size()));
        let mut read = [0; 5];
        base.read(4096, &mut read).unwrap();
        assert_eq!(&read, b"hello");
        client.read_exact_at(&mut read, 4096).unwrap();
        assert_eq!(&read, b"hello");
        running.stop();
    });
}

#[test]
fn five_thousand_files_are_listed_and_each_is_an_export() {
    soon(|| {
        let images = tempfile::tempdir().unwrap();
        for file in 0..5000 {
            fs::write(images.path().join(format!("{file:04}")), b"x").unwrap();
        }
        let exports = Directory::open(images.path()).unwrap();
        let running = Running::new(Server::new(exports.with_description("a file")));
        let path = running.unix.display();
        let uri = format!("nbd+unix:///4999?socket={path}");
        let greeted = ConnectOptions::new().start(&uri.parse().unwrap()).unwrap();
        let mut negotiation = greeted.negotiation().unwrap();
        let list = negotiation.list().unwrap();
        assert_eq!(
            (list.len(), list[7].name.as_ref().unwrap().as_str()),
            (5000, "0007")
        );
        assert_eq!(list[7].description.as_str(), "a file");
        negotiation.abort();

        let nowhere = format!("nbd+unix:///none?socket={path}");
        let error = ConnectOptions::new().connect(&nowhere).unwrap_err();
        assert!(error.to_string().contains("NBD_REP_ERR_UNKNOWN"), "{error}");

        // Several connections of a client, and another client, use the same file.
        let options = ConnectOptions::new().connections(3);
        let client = options.connect(&uri).unwrap();
        assert!(client.export().can_multi_conn());
        let other = ConnectOptions::new().connect(&uri).unwrap();
        client.write_all_at(b"y", 0).unwrap();
        let mut read = [0];
        other.read_exact_at(&mut read, 0).unwrap();
        assert_eq!(&read, b"y");
        running.stop();
    });
}
