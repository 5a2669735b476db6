//! The log of the server, also where it cannot be written.

use crate::support::{Serving, nbd, run_nbd};
use interop::run;
use rustix::process::{Pid, Signal, kill_process};
use std::{
    fs::File,
    io::{self, BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    process::Stdio,
    thread,
};

/// Sends bytes that are no greeting of a client.
fn send_garbage(serving: &Serving) {
    let socket = serving.path("socket");
    // A quiet server does not say when it listens.
    let mut stream = loop {
        if let Ok(stream) = UnixStream::connect(&socket) {
            break stream;
        }
        thread::yield_now();
    };
    stream.write_all(&[b'x'; 64]).unwrap();
    // The server may close the connection with bytes that it has not read.
    let _ = io::copy(&mut stream, &mut io::sink());
}

#[test]
fn connections_that_go_wrong_are_logged_and_others_on_request() {
    run(|| {
        let serving = Serving::new("--memory 1M").ready();
        run_nbd(["info", &serving.uri("")]);
        send_garbage(&serving);
        let said = serving.stop();
        assert!(said.contains("WARN") && !said.contains("INFO"), "{said}");
        assert_eq!(said.lines().count(), 1, "{said}");

        let serving = Serving::new("--memory 1M -v").ready();
        run_nbd(["info", &serving.uri("")]);
        let said = serving.stop();
        assert!(
            said.contains("INFO") && said.contains("a client connected"),
            "{said}"
        );

        let serving = Serving::new("--memory 1M -q");
        send_garbage(&serving);
        assert_eq!(serving.stop(), "");
    });
}

#[test]
fn logs_for_programs_are_json() {
    run(|| {
        let serving = Serving::new("--memory 1M --log json").ready();
        send_garbage(&serving);
        let said = serving.stop();
        let line: serde_json::Value = serde_json::from_str(said.trim()).unwrap();
        assert_eq!(line["level"], "WARN");
        assert!(
            line["message"]
                .as_str()
                .unwrap()
                .starts_with("a connection is closed")
        );
        assert_eq!(line["connection"], 1);
    });
}

#[test]
fn standard_error_that_cannot_be_written_stops_nothing() {
    run(|| {
        let (reader, full) = io::pipe().unwrap();
        let (closed_reader, closed) = io::pipe().unwrap();
        drop(closed_reader);
        // The first is full soon and is never read.
        for stderr in [full, closed] {
            let dir = tempfile::tempdir().unwrap();
            let socket = dir.path().join("socket");
            let mut command = nbd();
            command
                .args(["serve", "--memory", "1M", "-vvv", "--unix"])
                .arg(&socket);
            command
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .stderr(stderr);
            let mut child = command.spawn().unwrap();
            drop(command);
            let mut uri = String::new();
            let mut stdout = BufReader::new(child.stdout.take().unwrap());
            stdout.read_line(&mut uri).unwrap();
            let client = nbd_blocking::connect(uri.trim()).unwrap();
            for _ in 0..1_000 {
                client.read_at(&mut [0; 512], 0).unwrap();
            }
            client.disconnect().unwrap();
            let pid = Pid::from_child(&child);
            kill_process(pid, Signal::TERM).unwrap();
            assert_eq!(child.wait().unwrap().code(), Some(0));
        }
        drop(reader);
    });
}

#[test]
fn a_server_whose_uris_cannot_be_printed_goes_on_and_says_so() {
    run(|| {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("socket");
        let full = File::options().write(true).open("/dev/full").unwrap();
        let mut server = nbd()
            .args(["serve", "--memory=1M", "--unix"])
            .arg(&socket)
            .stdout(full)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = String::new();
        let mut stderr = BufReader::new(server.stderr.take().unwrap());
        stderr.read_line(&mut said).unwrap();
        assert!(
            said.contains("the URIs of the server cannot be printed"),
            "{said}"
        );
        let uri = format!("nbd+unix:///?socket={}", socket.display());
        assert!(said.contains(&uri), "{said}");
        assert!(run_nbd(["info", "--size", &uri]).status.success());
        kill_process(Pid::from_child(&server), Signal::TERM).unwrap();
        assert_eq!(server.wait().unwrap().code(), Some(0));
    });
}
