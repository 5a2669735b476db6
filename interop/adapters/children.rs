//! Servers as child processes.

use super::*;

#[test]
fn a_child_process_is_spoken_to_on_its_standard_streams() {
    limited(|| {
        on_runtime(async |_| {
            let socket = nbd_socket::Socket::spawn(Command::new("cat")).unwrap();
            let mut socket = Socket::new(socket).unwrap();
            write(&mut socket, b"meow").await;
            let mut space = [0; 64];
            assert_eq!(read(&mut socket, &mut space).await.unwrap(), 4);
            assert_eq!(&space[..4], b"meow");
            poll_fn(|cx| socket.poll_shutdown(cx)).await.unwrap();
            assert_eq!(read(&mut socket, &mut space).await.unwrap(), 0);
        });
    });
}

#[test]
fn dropping_a_socket_does_not_wait_for_the_child_process_which_ends_in_its_time() {
    limited(|| {
        let dir = scratch();
        let [path, leave] = ["ended", "leave"].map(|name| dir.path().join(name));
        on_runtime(async |_| {
            let mut command = Command::new("sh");
            let script = r#"cat >/dev/null; until [ -e "$1" ]; do sleep 0.02; done; : >"$0""#;
            command.args(["-c", script]).args([&path, &leave]);
            let socket = nbd_socket::Socket::spawn(command).unwrap();
            drop(Socket::new(socket).unwrap());
            // If dropping the socket waited for the child, it would kill it.
            std::fs::write(leave, "").unwrap();
        });
        while !path.exists() {
            thread::sleep(Duration::from_millis(10));
        }
    });
}

#[test]
fn programs_of_others_are_started_and_entered() {
    limited(|| {
        if require(Peer::Nbdkit).is_none() {
            return;
        }
        on_runtime(async |_| {
            let mut command = Command::new("nbdkit");
            command.args(["-s", "memory", "1M"]);
            let child = nbd_socket::Socket::spawn(command).unwrap();
            let mut command = Command::new("nbdkit");
            command.args(["-f", "memory", "1M"]);
            let activated = nbd_socket::Socket::activate(&command).unwrap();
            for socket in [child, activated] {
                let target = NegotiationConfig::new(ExportName::default());
                let entered = enter(Socket::new(socket).unwrap(), &target, &ClientTls::new()).await;
                assert_eq!(entered.unwrap().transmission.export().size, SIZE);
            }
        });
    });
}
