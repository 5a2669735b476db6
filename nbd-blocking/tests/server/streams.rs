//! Streams that a program brings, and those that it is started with.

use crate::serving::{
    asynchronous::Far,
    commands::exercise,
    example::program,
    support::{modes, soon},
};
use nbd_blocking::{ConnectOptions, Server, Stream};
use nbd_io::Memory;
use std::{process::Command, sync::Arc};

/// A stream of which nothing is known.
struct Plain(std::os::unix::net::UnixStream);

impl std::io::Read for Plain {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        self.0.read(buf)
    }
}

impl std::io::Write for Plain {
    fn write(&mut self, buf: &[u8]) -> std::io::Result<usize> {
        self.0.write(buf)
    }
    fn flush(&mut self) -> std::io::Result<()> {
        self.0.flush()
    }
}

#[test]
fn futures_are_carried_out_before_a_stream_that_waits_is_read_again() {
    soon(|| {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let server = Server::single_async(Far(Memory::new(64 << 20)));
        let serving = std::thread::spawn(move || server.serve_over(Stream::new(Plain(theirs))));
        let client = modes()[2].connect_over(ours, None).unwrap();
        exercise(&client);
        client.disconnect().unwrap();
        assert!(serving.join().unwrap().unwrap().is_clean());
    });
}

#[test]
fn any_stream_can_be_served() {
    soon(|| {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let server = Server::single(Arc::new(Memory::new(64 << 20)));
        let serving = std::thread::spawn(move || server.serve_over(Stream::new(Plain(theirs))));
        let client = modes()[2].connect_over(ours, None).unwrap();
        exercise(&client);
        client.disconnect().unwrap();
        assert!(serving.join().unwrap().unwrap().is_clean());
    });
}

#[test]
fn standard_input_and_output_are_served() {
    let directory = tempfile::tempdir().unwrap();
    let program = program(env!("CARGO_PKG_NAME"), &directory);
    soon(move || {
        let serve = |options: &ConnectOptions| {
            let mut command = Command::new(&program);
            command.args(["--stdio", "--quiet", "--size", "64M"]);
            options.connect_command(command).unwrap()
        };
        for options in modes() {
            let client = serve(&options);
            exercise(&client);
            client.disconnect().unwrap();
        }
        // Pipes, of which there are two, and a client that only sends NBD_OPT_ABORT.
        let mut command = Command::new("sh");
        command.args(["-c", r#"printf "$1" | "$0" --stdio --quiet | cat"#]);
        command.arg(&program);
        command.arg(r"\0\0\0\003IHAVEOPT\0\0\0\002\0\0\0\0");
        let said = command.output().unwrap();
        assert!(said.stderr.is_empty(), "{said:?}");
        assert!(said.stdout.starts_with(b"NBDMAGICIHAVEOPT\0\x03"));
        // The acknowledgement of NBD_OPT_ABORT.
        assert!(said.stdout.ends_with(b"\0\0\0\x02\0\0\0\x01\0\0\0\0"));
    });
}
