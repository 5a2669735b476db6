//! Addresses that clients connect to.

use crate::support::{Serving, failed, nbd, run_nbd, succeeded};
use interop::run;
use rustix::process::{Pid, Signal, kill_process};
use std::{
    fs::{self, File},
    io::{self, Read},
    net::TcpListener,
    os::{
        fd::{AsFd, OwnedFd},
        unix::{
            fs::{MetadataExt, PermissionsExt},
            net::{UnixDatagram, UnixListener, UnixStream},
        },
    },
    path::Path,
    process::{Child, Command, Stdio},
};

fn terminate(child: &Child) {
    kill_process(Pid::from_child(child), Signal::TERM).unwrap();
}

#[test]
fn the_port_that_the_system_chose_is_printed() {
    run(|| {
        let mut serving = Serving::prepared(
            |_| {},
            |command, _| {
                command.args("--memory 1M --listen 127.0.0.1:0 --listen localhost:0".split(' '));
            },
        );
        let first = serving.line();
        assert!(
            first.starts_with("nbd://127.0.0.1:") && !first.contains(":0/"),
            "{first}"
        );
        let second = serving.line();
        for uri in [&first, &second] {
            assert_eq!(succeeded(&run_nbd(["info", "--size", uri])), "1048576\n");
        }
        serving.stop();
    });
}

#[test]
fn a_port_in_use_is_an_error_that_names_it() {
    run(|| {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap().to_string();
        let said = failed(&run_nbd(["serve", "--memory", "1M", "--listen", &address]));
        assert!(said.contains(&address) && said.contains("in use"), "{said}");
    });
}

#[test]
fn a_unix_socket_has_its_mode_and_owner_and_is_removed_in_the_end() {
    run(|| {
        let owner = fs::metadata("/proc/self").unwrap();
        let owner = format!("{}:{}", owner.uid(), owner.gid());
        let args = format!("--memory 1M --unix-mode 606 --unix-owner {owner}");
        let serving = Serving::new(&args).ready();
        let socket = serving.path("socket");
        assert_eq!(
            fs::metadata(&socket).unwrap().permissions().mode() & 0o777,
            0o606
        );
        let dir = File::open(socket.parent().unwrap()).unwrap();
        serving.stop();
        // It is removed before the directory is.
        drop(dir);
        assert!(!socket.exists());
    });
}

#[test]
fn the_socket_of_a_dead_server_is_replaced_and_that_of_another_one_is_not() {
    run(|| {
        let stale = |dir: &Path| drop(UnixListener::bind(dir.join("socket")).unwrap());
        let serving = Serving::with(stale, "--memory 1M").ready();
        let socket = serving.path("socket");
        let socket = socket.to_str().unwrap();
        let said = failed(&run_nbd(["serve", "--memory", "1M", "--unix", socket]));
        assert!(
            said.contains(socket) && said.contains("another server listens there"),
            "{said}"
        );
        assert_eq!(
            succeeded(&run_nbd(["info", "--size", &serving.uri("")])),
            "1048576\n"
        );
    });
}

#[test]
fn one_client_is_served_on_standard_input_and_output() {
    run(|| {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut command = nbd();
        command.args(["serve", "--stdio", "--memory", "1M"]);
        let copy = theirs.try_clone().unwrap();
        command
            .stdin(OwnedFd::from(copy))
            .stdout(OwnedFd::from(theirs));
        let mut child = command.spawn().unwrap();
        // The server alone has it now.
        drop(command);
        let client = nbd_blocking::ConnectOptions::new()
            .connect_over(ours, None)
            .unwrap();
        client.write_at(b"hello", 4096).unwrap();
        client.disconnect().unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(0));
    });
}

#[test]
fn a_server_on_pipes_ends_with_them_or_by_a_signal() {
    run(|| {
        let start = || {
            let mut command = nbd();
            command.args(["serve", "--stdio", "--memory", "1M", "--grace", "0.1"]);
            command.stdin(Stdio::piped()).stdout(Stdio::piped());
            let mut child = command.spawn().unwrap();
            // The greeting, after which it waits for the client.
            let mut stdout = child.stdout.take().unwrap();
            stdout.read_exact(&mut [0; 18]).unwrap();
            (child, stdout)
        };
        let (mut child, _stdout) = start();
        drop(child.stdin.take());
        assert_eq!(child.wait().unwrap().code(), Some(0));
        let (mut child, _stdout) = start();
        let _stdin = child.stdin.take();
        terminate(&child);
        assert_eq!(child.wait().unwrap().code(), Some(0));
    });
}

#[test]
fn vsock_without_a_port_that_can_be_is_an_error() {
    run(|| {
        let said = failed(&run_nbd(["serve", "--memory", "1M", "--vsock", "0"]));
        assert!(said.contains("cannot listen at port 0 of vsock"), "{said}");
    });
}

/// A shell starts `nbd serve` with a socket as its descriptor 3, as systemd does.
fn activate(socket: impl AsFd, args: &str) -> Command {
    let mut command = Command::new("sh");
    // The number of the process is known to the shell alone, whose place it takes.
    let script = format!("LISTEN_PID=$$ LISTEN_FDS=1 exec \"$0\" serve {args} 3<&0 </dev/null");
    command.arg("-c").arg(script).arg(env!("CARGO_BIN_EXE_nbd"));
    command.stdin(socket.as_fd().try_clone_to_owned().unwrap());
    command
}

#[test]
fn sockets_of_socket_activation_are_used() {
    run(|| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let uri = format!("nbd://{}/", listener.local_addr().unwrap());
        let mut child = activate(&listener, "--memory 1M")
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        // The socket listens from the beginning, so that the client waits.
        assert_eq!(succeeded(&run_nbd(["info", "--size", &uri])), "1048576\n");
        terminate(&child);
        assert_eq!(child.wait().unwrap().code(), Some(0));
    });
}

#[test]
fn a_socket_of_socket_activation_that_is_missing_is_an_error() {
    run(|| {
        let mut command = Command::new("sh");
        let script = "LISTEN_PID=$$ LISTEN_FDS=1 exec \"$0\" serve --memory 1M 3<&-";
        command.arg("-c").arg(script).arg(env!("CARGO_BIN_EXE_nbd"));
        let said = failed(&command.output().unwrap());
        assert!(
            said.contains("cannot use the sockets of socket activation"),
            "{said}"
        );
    });
}

#[test]
fn a_connected_socket_of_socket_activation_is_served_to_its_end() {
    run(|| {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut child = activate(&theirs, "--memory 1M")
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        drop(theirs);
        let client = nbd_blocking::ConnectOptions::new()
            .connect_over(ours, None)
            .unwrap();
        assert_eq!(client.export().size, 1 << 20);
        client.disconnect().unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(0));
    });
}

#[test]
fn a_manager_and_a_descriptor_learn_that_clients_can_connect() {
    run(|| {
        let dir = tempfile::tempdir().unwrap();
        let manager = dir.path().join("manager");
        let manager_socket = UnixDatagram::bind(&manager).unwrap();
        let (mut ready, theirs) = io::pipe().unwrap();
        let mut command = Command::new("sh");
        let script = "exec \"$0\" serve --memory 1M --unix \"$1\" --ready-fd 7 --pid-file \"$2\" \
            7>&1 >/dev/null";
        command.arg("-c").arg(script).arg(env!("CARGO_BIN_EXE_nbd"));
        command
            .arg(dir.path().join("socket"))
            .arg(dir.path().join("pid"));
        command.env("NOTIFY_SOCKET", &manager).stdout(theirs);
        let mut child = command.spawn().unwrap();
        drop(command);
        let mut line = [0; 1];
        ready.read_exact(&mut line).unwrap();
        assert_eq!(&line, b"\n");
        UnixStream::connect(dir.path().join("socket")).unwrap();
        let pid = fs::read_to_string(dir.path().join("pid")).unwrap();
        assert_eq!(pid, format!("{}\n", child.id()));
        let message = || {
            let mut message = [0; 256];
            let len = manager_socket.recv(&mut message).unwrap();
            String::from_utf8_lossy(&message[..len]).into_owned()
        };
        assert_eq!(message(), format!("READY=1\nMAINPID={}", child.id()));
        terminate(&child);
        assert_eq!(message(), "STOPPING=1");
        assert_eq!(child.wait().unwrap().code(), Some(0));
        assert!(!dir.path().join("pid").exists());
    });
}
