//! Servers that the client starts itself.

use std::{
    fs,
    process::Command,
    time::{Duration, Instant},
};

use interop::{Image, Peer, require};

use crate::{
    driver::{ConnectOptions, ExportName, WAITS_FOR_CHILDREN},
    peers::exercise,
    support::{MIB, assert_has, assert_names, context, name, options, run},
};

/// Processes whose command line has this text.
pub(crate) fn running(text: &str) -> usize {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let command_lines =
        processes.filter_map(|process| fs::read(process.path().join("cmdline")).ok());
    command_lines
        .filter(|line| String::from_utf8_lossy(line).contains(text))
        .count()
}

pub(crate) fn wait_until_gone(text: &str) {
    let start = Instant::now();
    while running(text) > 0 {
        assert!(start.elapsed() < Duration::from_secs(20), "{text} runs on");
        std::thread::sleep(Duration::from_millis(10));
    }
}

pub(crate) fn allocation(export: &str) -> ConnectOptions {
    options()
        .context(context("base:allocation"))
        .export(name(export))
}

#[test]
fn a_server_on_standard_input_and_output_lives_as_long_as_its_client() {
    run(|| {
        let Some(_installed) = require(Peer::Nbdkit) else {
            return;
        };
        let image = Image::raw(2 * MIB);
        let path = image.path();
        let mut command = Command::new("nbdkit");
        command.arg("-s").arg("file").arg(&path);
        let client = allocation("").connect_command(command).unwrap();
        let shown = path.to_str().unwrap();
        assert_eq!(running(shown), 1);
        let copy = exercise(&client);
        client.disconnect().unwrap();
        drop(client);
        if WAITS_FOR_CHILDREN {
            assert_eq!(running(shown), 0);
        }
        wait_until_gone(shown);
        assert!(fs::read(&path).unwrap() == copy);
    });
}

#[test]
fn servers_take_a_listening_socket_from_the_client() {
    run(|| {
        for peer in [Peer::QemuNbd, Peer::Nbdkit] {
            let Some(_installed) = require(peer) else {
                continue;
            };
            let image = Image::raw(2 * MIB);
            let path = image.path();
            let mut command = Command::new(peer.command());
            match peer {
                Peer::QemuNbd => command.args(["-f", "raw", "-x", "disk"]).arg(&path),
                _ => command.args(["--foreground", "file"]).arg(&path),
            };
            let client = allocation("disk").connect_activated(&command).unwrap();
            assert_eq!(client.contexts().len(), 1);
            let copy = exercise(&client);
            client.disconnect().unwrap();
            drop(client);
            wait_until_gone(path.to_str().unwrap());
            assert!(fs::read(&path).unwrap() == copy);
        }
    });
}

#[test]
fn a_client_that_is_just_dropped_leaves_no_server_behind() {
    run(|| {
        let Some(_installed) = require(Peer::Nbdkit) else {
            return;
        };
        let image = Image::raw(MIB);
        let shown = image.path().to_str().unwrap().to_owned();
        let mut command = Command::new("nbdkit");
        command.args(["-s", "file"]).arg(image.path());
        let client = allocation("").connect_command(command).unwrap();
        assert_has(&client, 0, &[0; 512]);
        let other = client.clone();
        drop(client);
        assert_has(&other, 0, &[0; 512]);
        drop(other);
        wait_until_gone(&shown);
    });
}

#[test]
fn a_program_that_is_no_server_is_a_clear_error() {
    run(|| {
        let missing = Command::new("no-such-nbd-server");
        let error = options().connect_command(missing).unwrap_err();
        assert_names(&error, &["cannot connect to", "no-such-nbd-server"]);

        let error = options().connect_command(Command::new("true")).unwrap_err();
        assert_names(&error, &["closed the connection during the greeting"]);

        let mut echo = Command::new("echo");
        echo.arg("this is no server, but it says more than enough to be taken for one");
        let error = options().connect_command(echo).unwrap_err();
        assert_names(&error, &["broke the protocol during the greeting"]);

        let start = Instant::now();
        let mut silent = Command::new("sh");
        silent.args(["-c", "read nothing"]);
        let error = options()
            .negotiation_timeout(Some(Duration::from_millis(200)))
            .connect_command(silent)
            .unwrap_err();
        assert_names(&error, &["the connection failed during the greeting"]);
        assert!(start.elapsed() < Duration::from_secs(15));
    });
}

#[test]
fn an_activated_server_that_fails_is_a_clear_error() {
    run(|| {
        let Some(_installed) = require(Peer::Nbdkit) else {
            return;
        };
        let mut command = Command::new("nbdkit");
        command.args(["--foreground", "file", "/no/such/file"]);
        let start = Instant::now();
        let error = ConnectOptions::new()
            .export(ExportName::default())
            .negotiation_timeout(Some(Duration::from_secs(10)))
            .connect_activated(&command)
            .unwrap_err();
        assert_names(&error, &["the greeting"]);
        assert!(
            start.elapsed() < Duration::from_secs(9),
            "{:?}",
            start.elapsed()
        );
    });
}
