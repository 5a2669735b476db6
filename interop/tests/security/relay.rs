//! Peers that know no TLS, behind relays that do.

use crate::{
    drivers::connect_from,
    raw::{ACK, STARTTLS, option},
};
use interop::{Certificates, Scripted};
use nbd_io::tls::{
    ClientTls, ServerTls,
    rustls::{ClientConnection, ConnectionCommon, ServerConnection, SideData},
};
use socket2::SockRef;
use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    thread,
    time::Duration,
};

/// Time between two looks at sockets on which nothing moves.
const PAUSE: Duration = Duration::from_micros(200);

/// Time in which one side takes the last bytes of the other one.
const LAST: Duration = Duration::from_millis(200);

/// The URI of a server for one client that starts TLS. The bytes behind that are for the scripted
/// server, without TLS and as if it came from the client itself.
pub(crate) fn behind_tls(server: &Scripted, certificates: &Certificates) -> String {
    let config = ServerTls::from_directory(certificates.dir()).unwrap();
    let tls = ServerConnection::new(config.server().unwrap()).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let server = server.address();
    thread::spawn(move || {
        let (client, _) = listener.accept().unwrap();
        // Its end, of either kind, is the end for both.
        drop(relay_client(client, server, tls));
    });
    format!("nbds://{address}/")
}

fn relay_client(
    mut client: TcpStream,
    server: SocketAddr,
    mut tls: ServerConnection,
) -> io::Result<()> {
    client.write_all(b"NBDMAGICIHAVEOPT\0\x03")?;
    let mut start = [0; 4 + 16];
    client.read_exact(&mut start)?;
    let (flags, starttls) = start.split_at(4);
    assert_eq!(starttls, option(STARTTLS, &[]));
    client.write_all(b"\0\x03\xe8\x89\x04\x55\x65\xa9\0\0\0\x05\0\0\0\x01\0\0\0\0")?;
    let mut plain = TcpStream::connect(server)?;
    plain.read_exact(&mut [0; 18])?;
    plain.write_all(flags)?;
    pump(&mut tls, &mut client, &mut plain)
}

/// Listens for clients without TLS, whose bytes behind their flags go to the server inside TLS. A
/// client has its own address there, too. It ends when the listener is shut down.
pub(crate) fn in_front_of(server: SocketAddr, certificates: &Certificates) -> TcpListener {
    let tls = ClientTls::new();
    let tls = tls.roots_file(certificates.ca_certificate()).unwrap();
    let (config, name) = tls.client(Some("localhost")).unwrap();
    let relay = TcpListener::bind("127.0.0.1:0").unwrap();
    let listener = relay.try_clone().unwrap();
    thread::spawn(move || {
        while let Ok((client, _)) = listener.accept() {
            let tls = ClientConnection::new(config.clone(), name.clone()).unwrap();
            thread::spawn(move || drop(relay_server(client, server, tls)));
        }
    });
    relay
}

fn relay_server(
    mut client: TcpStream,
    server: SocketAddr,
    mut tls: ClientConnection,
) -> io::Result<()> {
    client.set_nodelay(true)?;
    let mut secure = connect_from(client.peer_addr()?.ip(), server)?;
    secure.set_nodelay(true)?;
    let ended = relay_between(&mut client, &mut secure, &mut tls);
    let kind = ended.as_ref().err().map(io::Error::kind);
    if kind == Some(io::ErrorKind::ConnectionReset) {
        // That of one side is the other one's.
        for side in [&client, &secure] {
            SockRef::from(side).set_linger(Some(Duration::ZERO))?;
        }
    }
    ended
}

fn relay_between(
    client: &mut TcpStream,
    secure: &mut TcpStream,
    tls: &mut ClientConnection,
) -> io::Result<()> {
    let mut greeting = [0; 18];
    secure.read_exact(&mut greeting)?;
    client.write_all(&greeting)?;
    let mut flags = [0; 4];
    client.read_exact(&mut flags)?;
    secure.write_all(&flags)?;
    secure.write_all(&option(STARTTLS, &[]))?;
    let mut reply = [0; 20];
    secure.read_exact(&mut reply)?;
    if reply[12..16] != ACK.to_be_bytes() {
        // It is stopping.
        return Ok(());
    }
    pump(tls, secure, client)
}

/// Moves bytes in both directions, of which neither waits for the other one, until one side ends.
fn pump<S: SideData>(
    tls: &mut ConnectionCommon<S>,
    secure: &mut TcpStream,
    plain: &mut TcpStream,
) -> io::Result<()> {
    secure.set_nonblocking(true)?;
    plain.set_nonblocking(true)?;
    let mut piece = vec![0; 16 << 10];
    // Bytes that the plain side has yet to take.
    let mut held = Vec::new();
    loop {
        let mut moved = false;
        if tls.wants_write() {
            moved |= ready(tls.write_tls(secure))?.is_some();
        } else if !tls.is_handshaking()
            && let Some(len) = ready(plain.read(&mut piece))?
        {
            if len == 0 {
                tls.send_close_notify();
                secure.set_nonblocking(false)?;
                secure.set_write_timeout(Some(LAST))?;
                return tls.write_tls(secure).map(drop);
            }
            tls.writer().write_all(&piece[..len])?;
            moved = true;
        }
        if !held.is_empty() {
            if let Some(len) = ready(plain.write(&held))? {
                held.drain(..len);
                moved = true;
            }
        } else if let Some(len) = ready(tls.read_tls(secure))? {
            let state = tls.process_new_packets().map_err(io::Error::other)?;
            held.resize(state.plaintext_bytes_to_read(), 0);
            tls.reader().read_exact(&mut held)?;
            if len == 0 || state.peer_has_closed() {
                plain.set_nonblocking(false)?;
                plain.set_write_timeout(Some(LAST))?;
                return plain.write_all(&held);
            }
            moved = true;
        }
        if !moved {
            thread::sleep(PAUSE);
        }
    }
}

/// The number of bytes, if the socket was ready for any.
fn ready(moved: io::Result<usize>) -> io::Result<Option<usize>> {
    match moved {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(None),
        moved => moved.map(Some),
    }
}
