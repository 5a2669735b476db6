//! Reaching servers by their addresses.

use super::*;

#[test]
fn an_export_is_entered_over_tcp() {
    limited(|| {
        for host in ["127.0.0.1", "[::1]", "localhost"] {
            let ip = host.replace("localhost", "127.0.0.1");
            let listener = TcpListener::bind(format!("{ip}:0")).unwrap();
            let port = listener.local_addr().unwrap().port();
            let server = server();
            let stopper = server.stopper();
            let serving = thread::spawn(move || {
                server.serve(nbd_blocking::Listener::from_std(listener).unwrap())
            });
            on_runtime(async |network| {
                enter_plain(&network, &format!("nbd://{host}:{port}")).await;
            });
            stopper.stop();
            serving.join().unwrap().unwrap();
        }
    });
}

#[test]
fn an_export_is_entered_over_unix_sockets() {
    limited(|| {
        let dir = scratch();
        let path = dir.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let server = server();
        let stopper = server.stopper();
        let serving = thread::spawn(move || {
            server.serve(nbd_blocking::Listener::from_std(listener).unwrap())
        });
        on_runtime(async |network| {
            enter_plain(&network, &format!("nbd+unix:///?socket={}", path.display())).await;
        });
        stopper.stop();
        serving.join().unwrap().unwrap();
    });
}

#[cfg(target_os = "linux")]
#[test]
fn an_export_is_entered_over_an_abstract_socket() {
    use std::os::linux::net::SocketAddrExt;
    limited(|| {
        let name = format!("nbd-{}-{:?}", std::process::id(), thread::current().id());
        let name = name.replace(['(', ')'], "-");
        let address = std::os::unix::net::SocketAddr::from_abstract_name(&name).unwrap();
        let listener = UnixListener::bind_addr(&address).unwrap();
        let serving = thread::spawn(move || server().serve_over(accepted(&listener)));
        on_runtime(async |network| {
            enter_plain(&network, &format!("nbd+unix:///?socket=%00{name}")).await;
        });
        serving.join().unwrap().unwrap();
    });
}

#[test]
fn tcp_sends_small_messages_at_once() {
    limited(|| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("nbd://{}", listener.local_addr().unwrap());
        on_runtime(async |network| {
            let socket = network
                .connect(uri(&address).address(), &DialOptions::default())
                .await
                .unwrap();
            let fd = std::os::fd::AsFd::as_fd(&socket).try_clone_to_owned();
            assert!(TcpStream::from(fd.unwrap()).nodelay().unwrap());
        });
    });
}

#[test]
fn every_address_of_a_host_is_tried_and_named_in_the_error() {
    limited(|| {
        // A socket that has a port and does not listen.
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None);
        let socket = socket.unwrap();
        let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
        socket.bind(&any.into()).unwrap();
        let port = socket.local_addr().unwrap().as_socket().unwrap().port();
        on_runtime(async |network| {
            let options = DialOptions::default();
            for host in ["127.0.0.1", "localhost"] {
                let address = uri(&format!("nbd://{host}:{port}"));
                let error = network
                    .connect(address.address(), &options)
                    .await
                    .unwrap_err();
                assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
                let text = error.to_string();
                let named = text.contains(&format!("127.0.0.1:{port}: "));
                // For an address in numbers the error names it once.
                assert_eq!(named, host == "localhost", "{text}");
            }
            let address = uri("nbd://no-such-host.invalid");
            assert!(
                network
                    .connect(address.address(), &DialOptions::default())
                    .await
                    .is_err()
            );
            let address = unix_uri(Path::new("/nowhere/socket"));
            let error = network
                .connect(address.address(), &options)
                .await
                .unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::NotFound);
        });
    });
}

#[test]
fn connecting_waits_for_room_in_the_queue_of_a_listener() {
    limited(|| {
        let dir = scratch();
        let path = dir.path().join("socket");
        let listener = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None);
        let listener = listener.unwrap();
        let address = socket2::SockAddr::unix(&path).unwrap();
        listener.bind(&address).unwrap();
        listener.listen(0).unwrap();
        let _first = UnixStream::connect(&path).unwrap();
        let (sender, receiver) = mpsc::channel();
        let accepting = thread::spawn(move || {
            receiver.recv().unwrap();
            (listener.accept().unwrap(), listener.accept().unwrap())
        });
        on_runtime(async |network| {
            let address = unix_uri(&path);
            let options = DialOptions::default();
            let mut connecting = Box::pin(network.connect(address.address(), &options));
            let mut sleep = network.sleep(Duration::from_millis(50));
            poll_fn(|cx| {
                assert!(connecting.as_mut().poll(cx).is_pending());
                std::pin::Pin::new(&mut sleep).poll(cx)
            })
            .await;
            sender.send(()).unwrap();
            connecting.await.unwrap();
        });
        accepting.join().unwrap();
    });
}

#[cfg(target_os = "linux")]
#[test]
fn a_vsock_address_is_connected_to_or_refused_by_the_system() {
    limited(|| {
        // The machine itself, if its kernel has vsock's loopback.
        let address = uri("nbd+vsock://1:10809");
        on_runtime(async |network| {
            let error = network
                .connect(address.address(), &DialOptions::default())
                .await
                .unwrap_err();
            assert!(error.raw_os_error().is_some(), "{error:?}");
        });
    });
}
