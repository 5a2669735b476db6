//! What the adapter of every asynchronous runtime has to do. The tests of each of them include this
//! file, and say what their `Socket` is and how a test is run `on_runtime`.

use super::{Socket, on_runtime};
use interop::{Certificates, Flaw, Image, Listen, Nbdkit, Peer, QemuNbd, deadline, require};
use nbd_blocking::{ServerTls, server::Server};
use nbd_io::{
    Memory,
    client::{Connected, NegotiationError, Target, TlsPolicy, negotiate},
    runtime::{Network, Runtime, Tasks},
    tls::{ClientTls, TlsError},
    transport::{Layered, Transport},
};
use nbd_proto::{ExportName, Uri};
use std::{
    future::poll_fn,
    io::{self, IoSlice, IoSliceMut, Read, Write},
    net::{TcpListener, TcpStream},
    os::unix::net::{UnixListener, UnixStream},
    path::Path,
    process::Command,
    sync::{Arc, mpsc},
    task::Poll,
    thread,
    time::{Duration, Instant},
};

const SIZE: u64 = 1 << 20;

/// Runs the body of a test with a time limit.
fn limited(body: impl FnOnce() + Send + 'static) {
    deadline(Duration::from_secs(60), body);
}

fn server() -> Server {
    Server::single(Arc::new(Memory::new(SIZE)))
}

fn uri(text: &str) -> Uri {
    Uri::parse(text).unwrap()
}

fn unix_uri(path: &Path) -> Uri {
    uri(&format!("nbd+unix:///?socket={}", path.display()))
}

fn scratch() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

type Entered = Result<Connected<Layered<Socket>>, NegotiationError>;

async fn enter(socket: Socket, target: &Target, tls: &ClientTls) -> Entered {
    negotiate(Layered::Plain(socket), target, |plain| {
        plain.start_tls(tls, Some("localhost"))
    })
    .await
}

/// Enters the default export in the clear.
async fn enter_plain(network: &impl Network<Stream = Socket>, address: &str) {
    let socket = network.connect(uri(address).address()).await.unwrap();
    let target = Target::new(uri(address).export().clone());
    let connected = enter(socket, &target, &ClientTls::new()).await.unwrap();
    assert!(!connected.encrypted);
    assert_eq!(connected.transmission.export().size, SIZE);
}

async fn read(transport: &mut impl Transport, space: &mut [u8]) -> io::Result<usize> {
    poll_fn(|cx| transport.poll_read(cx, &mut [IoSliceMut::new(space)])).await
}

async fn write(transport: &mut impl Transport, bytes: &[u8]) {
    let mut rest = bytes;
    while !rest.is_empty() {
        let n = poll_fn(|cx| transport.poll_write(cx, &[IoSlice::new(rest)])).await;
        rest = &rest[n.unwrap()..];
    }
    poll_fn(|cx| transport.poll_flush(cx)).await.unwrap();
}

/// Takes a connection that is made meanwhile.
fn accepted(listener: &UnixListener) -> UnixStream {
    listener.accept().unwrap().0
}

/// A connected pair, of which the other end is a plain socket.
fn pair() -> (Socket, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let socket = nbd_socket::Socket::new(ours.into()).unwrap();
    (Socket::new(socket).unwrap(), theirs)
}

#[test]
fn an_export_is_entered_over_tcp() {
    limited(|| {
        for host in ["127.0.0.1", "[::1]", "localhost"] {
            let ip = host.replace("localhost", "127.0.0.1");
            let listener = TcpListener::bind(format!("{ip}:0")).unwrap();
            let port = listener.local_addr().unwrap().port();
            let server = server();
            let stopper = server.stopper();
            let serving = thread::spawn(move || server.serve_tcp(listener));
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
        let serving = thread::spawn(move || server.serve_unix(listener));
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
        let serving = thread::spawn(move || server().serve_unix_stream(accepted(&listener)));
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
            let socket = network.connect(uri(&address).address()).await.unwrap();
            let fd = std::os::fd::AsFd::as_fd(&socket).try_clone_to_owned();
            assert!(TcpStream::from(fd.unwrap()).nodelay().unwrap());
        });
    });
}

#[test]
fn every_address_of_a_host_is_tried_and_named_in_the_error() {
    limited(|| {
        // Nobody listens on a port that was just free.
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        on_runtime(async |network| {
            for host in ["127.0.0.1", "localhost"] {
                let address = uri(&format!("nbd://{host}:{port}"));
                let error = network.connect(address.address()).await.unwrap_err();
                assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
                let text = error.to_string();
                assert!(text.contains(&format!("127.0.0.1:{port}: ")), "{text}");
            }
            let address = uri("nbd://no-such-host.invalid");
            assert!(network.connect(address.address()).await.is_err());
            let address = unix_uri(Path::new("/nowhere/socket"));
            let error = network.connect(address.address()).await.unwrap_err();
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
        let (tell, told) = mpsc::channel();
        let accepting = thread::spawn(move || {
            told.recv().unwrap();
            (listener.accept().unwrap(), listener.accept().unwrap())
        });
        on_runtime(async |network| {
            let address = unix_uri(&path);
            let mut connecting = Box::pin(network.connect(address.address()));
            let mut nap = network.sleep(Duration::from_millis(50));
            poll_fn(|cx| {
                assert!(connecting.as_mut().poll(cx).is_pending());
                std::pin::Pin::new(&mut nap).poll(cx)
            })
            .await;
            tell.send(()).unwrap();
            connecting.await.unwrap();
        });
        accepting.join().unwrap();
    });
}

#[cfg(target_os = "linux")]
#[test]
fn a_vsock_address_is_connected_to_or_refused_by_the_system() {
    limited(|| {
        // The machine itself, if it has the module for that.
        let address = uri("nbd+vsock://1:10809");
        on_runtime(async |network| {
            let error = network.connect(address.address()).await.unwrap_err();
            assert!(error.raw_os_error().is_some(), "{error:?}");
        });
    });
}

#[test]
fn one_call_takes_a_header_and_its_payload() {
    limited(|| {
        on_runtime(async |_| {
            let (mut socket, mut peer) = pair();
            let (header, payload) = ([1; 28], [2; 4096]);
            let bufs = [IoSlice::new(&header), IoSlice::new(&payload)];
            let n = poll_fn(|cx| socket.poll_write(cx, &bufs)).await;
            assert_eq!(n.unwrap(), 28 + 4096);

            let mut got = [0; 28 + 4096];
            peer.read_exact(&mut got).unwrap();
            peer.write_all(&got).unwrap();
            let (mut header, mut payload) = ([0; 28], [0; 8192]);
            let mut bufs = [IoSliceMut::new(&mut header), IoSliceMut::new(&mut payload)];
            let n = poll_fn(|cx| socket.poll_read(cx, &mut bufs)).await;
            assert_eq!(n.unwrap(), 28 + 4096);
            assert!(header == [1; 28] && payload[..4096] == [2; 4096]);
        });
    });
}

#[test]
fn both_directions_go_on_at_once() {
    const LEN: usize = 8 << 20;
    limited(|| {
        on_runtime(async |_| {
            let (mut socket, peer) = pair();
            // Echoes what it gets, so that whoever only writes waits for ever.
            let echo = thread::spawn(move || {
                let (mut from, mut to) = (peer.try_clone().unwrap(), peer);
                io::copy(&mut from, &mut to).unwrap()
            });
            let sent: Vec<u8> = (0..LEN).map(|i| (i % 251).to_le_bytes()[0]).collect();
            let mut got = vec![0; LEN];
            let (mut out, mut back) = (0, 0);
            poll_fn(|cx| {
                loop {
                    let before = (out, back);
                    if out < LEN {
                        match socket.poll_write(cx, &[IoSlice::new(&sent[out..])])? {
                            Poll::Ready(n) => out += n,
                            Poll::Pending => {}
                        }
                    }
                    let space = &mut got[back..];
                    match socket.poll_read(cx, &mut [IoSliceMut::new(space)])? {
                        Poll::Ready(n) => back += n,
                        Poll::Pending => {}
                    }
                    if back == LEN {
                        return Poll::Ready(io::Result::Ok(()));
                    }
                    if before == (out, back) {
                        return Poll::Pending;
                    }
                }
            })
            .await
            .unwrap();
            assert!(got == sent);
            poll_fn(|cx| socket.poll_shutdown(cx)).await.unwrap();
            assert_eq!(read(&mut socket, &mut [0]).await.unwrap(), 0);
            assert_eq!(echo.join().unwrap(), LEN as u64);
        });
    });
}

#[test]
fn many_small_messages_go_back_and_forth() {
    limited(|| {
        on_runtime(async |_| {
            let (mut socket, mut peer) = pair();
            let echo = thread::spawn(move || {
                let mut request = [0; 28];
                while peer.read_exact(&mut request).is_ok() {
                    peer.write_all(&request[..16]).unwrap();
                }
            });
            for i in 0..5_000_u32 {
                write(&mut socket, &[i.to_le_bytes()[0]; 28]).await;
                let (mut got, mut space) = (0, [0; 64]);
                while got < 16 {
                    got += read(&mut socket, &mut space[got..]).await.unwrap();
                }
                assert_eq!(space[..16], [i.to_le_bytes()[0]; 16]);
            }
            drop(socket);
            echo.join().unwrap();
        });
    });
}

#[test]
fn what_came_before_the_end_is_read_before_the_end() {
    limited(|| {
        on_runtime(async |_| {
            let (mut socket, mut peer) = pair();
            peer.write_all(&[7; 100]).unwrap();
            drop(peer);
            let mut space = [0; 64];
            assert_eq!(read(&mut socket, &mut space).await.unwrap(), 64);
            assert_eq!(read(&mut socket, &mut space).await.unwrap(), 36);
            assert_eq!(read(&mut socket, &mut space).await.unwrap(), 0);
            assert_eq!(read(&mut socket, &mut space).await.unwrap(), 0);
        });
    });
}

#[test]
fn after_the_farewell_nobody_waits_for_long() {
    limited(|| {
        on_runtime(async |_| {
            let (mut socket, mut peer) = pair();
            poll_fn(|cx| socket.poll_shutdown(cx)).await.unwrap();
            peer.write_all(b"goodbye").unwrap();
            let mut space = [0; 64];
            assert_eq!(read(&mut socket, &mut space).await.unwrap(), 7);
            for _ in 0..2 {
                let error = read(&mut socket, &mut space).await.unwrap_err();
                assert_eq!(error.kind(), io::ErrorKind::TimedOut);
            }
        });
    });
}

/// Serves one connection that has to start TLS.
fn serve_tls(certificates: &Certificates) -> (TcpServing, String) {
    let tls = ServerTls::from_directory(certificates.dir())
        .unwrap()
        .require_client_certificates(true);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("nbd://{}", listener.local_addr().unwrap());
    let server = server().require_tls(&tls).unwrap();
    let serving = thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        server.serve_tcp_stream(stream).map(drop)
    });
    (serving, address)
}

type TcpServing = thread::JoinHandle<io::Result<()>>;

#[test]
fn an_export_is_entered_over_tls() {
    limited(|| {
        let certificates = Certificates::new();
        let (serving, address) = serve_tls(&certificates);
        on_runtime(async |network| {
            let socket = network.connect(uri(&address).address()).await.unwrap();
            let tls = ClientTls::new().directory(certificates.dir()).unwrap();
            let mut target = Target::new(uri(&address).export().clone());
            target.tls = TlsPolicy::Always;
            target.extended_headers = false;
            let mut connected = enter(socket, &target, &tls).await.unwrap();
            assert!(connected.encrypted);
            assert_eq!(connected.transmission.export().size, SIZE);
            let Layered::Tls(inside) = &connected.transport else {
                panic!("this is in the clear: {:?}", connected.transport);
            };
            assert_eq!(inside.peer_certificates().unwrap().len(), 1);

            // `NBD_CMD_READ` with a cookie to recognise, which is at the same place in every reply.
            let mut request = [0; 28];
            request[..4].copy_from_slice(&[0x25, 0x60, 0x95, 0x13]);
            request[8..16].fill(0xc0);
            request[27] = 8;
            write(&mut connected.transport, &request).await;
            let mut reply = [0; 16];
            let mut got = 0;
            while got < reply.len() {
                let n = read(&mut connected.transport, &mut reply[got..]).await;
                got += n.unwrap();
            }
            assert_eq!(reply[8..], [0xc0; 8]);
            poll_fn(|cx| connected.transport.poll_shutdown(cx))
                .await
                .unwrap();
        });
        serving.join().unwrap().unwrap();
    });
}

#[test]
fn a_server_with_the_wrong_certificate_is_not_believed() {
    limited(|| {
        for flaw in [Flaw::Expired, Flaw::OtherAuthority, Flaw::WrongName] {
            let certificates = Certificates::with_server(flaw);
            let (serving, address) = serve_tls(&certificates);
            on_runtime(async |network| {
                let socket = network.connect(uri(&address).address()).await.unwrap();
                let tls = ClientTls::new().directory(certificates.dir()).unwrap();
                let mut target = Target::new(uri(&address).export().clone());
                target.tls = TlsPolicy::Always;
                let error = enter(socket, &target, &tls).await.unwrap_err();
                let NegotiationError::Tls(source) = &error else {
                    panic!("{error:?}");
                };
                let source = source.downcast_ref::<TlsError>();
                assert!(
                    matches!(source, Some(TlsError::Certificate { .. })),
                    "{error:?}"
                );
            });
            serving.join().unwrap().unwrap();
        }
    });
}

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
        let path = dir.path().join("ended");
        on_runtime(async |_| {
            let mut command = Command::new("sh");
            let script = r#"cat >/dev/null; sleep 1; : >"$0""#;
            command.arg("-c").arg(script).arg(&path);
            let socket = nbd_socket::Socket::spawn(command).unwrap();
            let socket = Socket::new(socket).unwrap();
            let start = Instant::now();
            drop(socket);
            assert!(start.elapsed() < Duration::from_millis(900));
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
                let target = Target::new(ExportName::default());
                let entered = enter(Socket::new(socket).unwrap(), &target, &ClientTls::new()).await;
                assert_eq!(entered.unwrap().transmission.export().size, SIZE);
            }
        });
    });
}

#[test]
fn servers_of_others_are_entered_with_and_without_tls() {
    limited(|| {
        let certificates = Certificates::new();
        let nbdkit = || Nbdkit::new("memory").param("1M");
        let qemu = || QemuNbd::new(Image::raw(SIZE));
        let servers = [
            (TlsPolicy::Never, nbdkit().start()),
            (TlsPolicy::Never, qemu().listen(Listen::Tcp6).start()),
            (
                TlsPolicy::IfOffered,
                nbdkit().tls_offered(&certificates).start(),
            ),
            (
                TlsPolicy::Always,
                nbdkit().tls_required(&certificates).start(),
            ),
            (
                TlsPolicy::Always,
                qemu().tls_required(&certificates).start(),
            ),
        ];
        on_runtime(async |network| {
            for (policy, server) in &servers {
                let Some(server) = server else { continue };
                let address = uri(&server.uri(""));
                let socket = network.connect(address.address()).await.unwrap();
                let tls = ClientTls::new().directory(certificates.dir()).unwrap();
                let mut target = Target::new(ExportName::default());
                target.tls = *policy;
                let connected = enter(socket, &target, &tls).await.unwrap();
                assert_eq!(connected.encrypted, *policy != TlsPolicy::Never);
                assert_eq!(connected.transmission.export().size, SIZE);
            }
        });
    });
}

#[test]
fn timers_tasks_and_jobs_run() {
    limited(|| {
        on_runtime(async |network| {
            let start = Instant::now();
            network.sleep(Duration::from_millis(30)).await;
            assert!(start.elapsed() >= Duration::from_millis(30));
            // It need not be polled to its end.
            drop(network.sleep(Duration::MAX));

            let (tell, told) = mpsc::channel();
            let (other, here) = (tell.clone(), thread::current().id());
            network.spawn(async move { tell.send("task").unwrap() });
            network.spawn_blocking(move || {
                thread::sleep(Duration::from_millis(10));
                assert_ne!(thread::current().id(), here);
                other.send("job").unwrap();
            });
            let mut got = [told.recv().unwrap(), told.recv().unwrap()];
            got.sort_unstable();
            assert_eq!(got, ["job", "task"]);
        });
    });
}
