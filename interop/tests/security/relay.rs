//! A scripted server behind TLS.

use crate::raw::STARTTLS;
use interop::{Certificates, Scripted};
use nbd_io::tls::{
    ServerTls,
    rustls::{ServerConfig, ServerConnection, StreamOwned},
};
use std::{
    io::{self, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::Arc,
    thread,
    time::Duration,
};

/// Time that one direction is waited for before the other one is.
const TURN: Duration = Duration::from_millis(2);

/// The URI of a server for one client that starts TLS. The bytes behind that are for the scripted
/// server, without TLS and as if it came from the client itself.
pub(crate) fn behind_tls(server: &Scripted, certificates: &Certificates) -> String {
    let config = ServerTls::from_directory(certificates.dir()).unwrap();
    let config = config.server().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let server = server.address();
    thread::spawn(move || {
        let (client, _) = listener.accept().unwrap();
        // Its end, of either kind, is the end for both.
        drop(relay(client, server, config));
    });
    format!("nbd://{address}/")
}

fn relay(mut client: TcpStream, server: SocketAddr, config: Arc<ServerConfig>) -> io::Result<()> {
    client.write_all(b"NBDMAGICIHAVEOPT\0\x03")?;
    let mut start = [0; 4 + 16];
    client.read_exact(&mut start)?;
    let (flags, option) = start.split_at(4);
    assert_eq!(option[8..12], STARTTLS.to_be_bytes());
    client.write_all(b"\0\x03\xe8\x89\x04\x55\x65\xa9\0\0\0\x05\0\0\0\x01\0\0\0\0")?;
    let session = ServerConnection::new(config).map_err(io::Error::other)?;
    let mut secure = StreamOwned::new(session, client);
    while secure.conn.is_handshaking() {
        secure.conn.complete_io(&mut secure.sock)?;
    }
    let mut plain = TcpStream::connect(server)?;
    plain.read_exact(&mut [0; 18])?;
    plain.write_all(flags)?;
    secure.sock.set_read_timeout(Some(TURN))?;
    plain.set_read_timeout(Some(TURN))?;
    let ended = pump(&mut secure, &mut plain);
    secure.conn.send_close_notify();
    drop(secure.flush());
    drop(plain.shutdown(Shutdown::Both));
    ended
}

fn pump(
    secure: &mut StreamOwned<ServerConnection, TcpStream>,
    plain: &mut TcpStream,
) -> io::Result<()> {
    let mut buffer = [0; 16 << 10];
    loop {
        match secure.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(n) => plain.write_all(&buffer[..n])?,
            Err(error) if is_pause(&error) => {}
            Err(error) => return Err(error),
        }
        match plain.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(n) => secure.write_all(&buffer[..n])?,
            Err(error) if is_pause(&error) => {}
            Err(error) => return Err(error),
        }
    }
}

fn is_pause(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted
    )
}
