//! TLS over a socket that two threads use, one in each direction.

use crate::dial_clock::DialClock;
use nbd_io::{
    tls::{
        Received, SEND_BUFFER, TlsError,
        rustls::{self, ClientConfig, ClientConnection, Connection, pki_types::ServerName},
    },
    transport::TlsSession,
};
use nbd_socket::Socket;
use std::{
    fmt,
    future::poll_fn,
    io::{self, IoSlice, IoSliceMut, Write},
    mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

/// A TLS connection.
///
/// Neither part is locked while the socket is waited for, but `received`, which only the one reader
/// locks.
pub(crate) struct TlsStream {
    socket: Socket,
    connection: Mutex<Connection>,
    /// Encrypted bytes that have come and were not decrypted.
    received: Mutex<Received>,
}

/// The reason for which a handshake failed.
enum Failure {
    Io(io::Error),
    Tls(rustls::Error),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl TlsStream {
    /// Does the handshake with a server.
    pub(crate) async fn connect(
        socket: Socket,
        config: Arc<ClientConfig>,
        name: &ServerName<'static>,
        deadline: Option<Instant>,
        clock: &DialClock,
    ) -> Result<Self, TlsError> {
        let connection = ClientConnection::new(config, name.clone())
            .map_err(|source| TlsError::handshake(name, source))?;
        let done = Self::handshake(socket, connection.into(), deadline, clock).await;
        done.map_err(|failure| match failure {
            Failure::Io(source) => TlsError::Io {
                name: name.to_str().into_owned(),
                source,
            },
            Failure::Tls(source) => TlsError::handshake(name, source),
        })
    }

    /// The results of the handshake.
    pub(crate) fn session(&self) -> Option<TlsSession> {
        TlsSession::of(&lock(&self.connection))
    }

    async fn handshake(
        socket: Socket,
        mut connection: Connection,
        deadline: Option<Instant>,
        clock: &DialClock,
    ) -> Result<Self, Failure> {
        connection.set_buffer_limit(Some(SEND_BUFFER));
        let stream = Self {
            socket,
            connection: Mutex::new(connection),
            received: Mutex::new(Received::new()),
        };
        loop {
            stream.flush_by(deadline, clock).await?;
            if !lock(&stream.connection).is_handshaking() {
                return Ok(stream);
            }
            // Bytes that came with earlier ones are taken first.
            let is_empty = lock(&stream.received).is_empty();
            if is_empty {
                poll_fn(|_| clock.poll(&stream.socket, true, false, deadline)).await?;
                if stream.receive(&mut lock(&stream.received), false)? == 0 {
                    return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
                }
            }
            let decrypted = lock(&stream.received).decrypt(&mut lock(&stream.connection))?;
            if let Err(error) = decrypted {
                // The alert carries the reason to the peer.
                let _ = stream.flush_by(deadline, clock).await;
                return Err(Failure::Tls(error));
            }
        }
    }

    pub(crate) const fn socket(&self) -> &Socket {
        &self.socket
    }

    /// Receives into `bufs` in order. With `block` it may wait, but only once: the next part of a
    /// record may take as long again.
    pub(crate) fn recv(&self, bufs: &mut [IoSliceMut<'_>], mut block: bool) -> io::Result<usize> {
        let mut received = lock(&self.received);
        loop {
            let mut connection = lock(&self.connection);
            let sending = connection.wants_write();
            let read = received.read(&mut connection, bufs);
            // Sends alerts and other records of TLS itself, unless a writer left something behind
            // and will send both. A failure is left to the next writer to report: this reader has
            // its bytes.
            if !sending {
                let _ = self.send_ready(&mut connection);
            }
            drop(connection);
            if let Some(n) = read? {
                return Ok(n);
            }
            if self.receive(&mut received, mem::take(&mut block))? == 0 {
                return Err(io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    "the peer ended the connection without ending TLS",
                ));
            }
        }
    }

    pub(crate) fn send(&self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        let mut connection = lock(&self.connection);
        self.send_ready(&mut connection)?;
        let n = connection.writer().write_vectored(bufs)?;
        match self.send_ready(&mut connection) {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
            _ => Ok(n),
        }
    }

    /// Sends bytes that earlier sends left over, as many as fit without waiting.
    pub(crate) fn flush(&self) -> io::Result<()> {
        self.send_ready(&mut lock(&self.connection))
    }

    /// Announces to the peer that no more bytes will come.
    pub(crate) fn close_notify(&self) {
        lock(&self.connection).send_close_notify();
        let _ = self.flush();
    }

    async fn flush_by(&self, deadline: Option<Instant>, clock: &DialClock) -> io::Result<()> {
        loop {
            match self.flush() {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    poll_fn(|_| clock.poll(&self.socket, false, true, deadline)).await?;
                }
                done => return done,
            }
        }
    }

    /// Sends encrypted bytes, as many as fit without waiting.
    fn send_ready(&self, connection: &mut Connection) -> io::Result<()> {
        while connection.wants_write() {
            if connection.write_tls(&mut Outgoing(&self.socket))? == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
        }
        Ok(())
    }

    fn receive(&self, received: &mut Received, block: bool) -> io::Result<usize> {
        let space = IoSliceMut::new(received.space());
        let n = self.socket.recv(&mut [space], block)?;
        received.filled(n);
        Ok(n)
    }
}

/// A socket as rustls writes to it.
struct Outgoing<'a>(&'a Socket);

impl Write for Outgoing<'_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.0.send(&[IoSlice::new(buf)], false)
    }

    fn write_vectored(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        self.0.send(bufs, false)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl fmt::Debug for TlsStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsStream")
            .field("socket", &self.socket)
            .finish_non_exhaustive()
    }
}

#[cfg(all(test, any(feature = "tls", feature = "tls-ring")))]
mod tests {
    use super::*;
    use nbd_io::{
        tls::{ClientTls, ServerTls, rustls::ServerConnection},
        transport::block_on_ready,
    };
    use rcgen::{CertificateParams, KeyPair};
    use std::{os::unix::net::UnixStream, thread};

    #[test]
    fn a_receive_waits_for_one_part_of_a_record_alone() {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(["disks.example".to_owned()]).unwrap();
        let cert = params.self_signed(&key).unwrap().pem();
        let server = ServerTls::from_pem(cert.as_bytes(), key.serialize_pem().as_bytes());
        let mut server = ServerConnection::new(server.unwrap().server().unwrap()).unwrap();
        let client = ClientTls::new().roots_pem(cert.as_bytes()).unwrap();
        let (config, name) = client.client(Some("disks.example")).unwrap();

        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let server = thread::spawn(move || {
            while server.is_handshaking() {
                server.complete_io(&mut theirs).unwrap();
            }
            (server, theirs)
        });
        let socket = Socket::from_std(ours).unwrap();
        let clock = DialClock::default();
        let connecting = TlsStream::connect(socket, config, &name, None, &clock);
        let Ok(client) = block_on_ready(connecting) else {
            panic!("no handshake");
        };
        let (mut server, mut theirs) = server.join().unwrap();

        server.writer().write_all(b"disk").unwrap();
        let mut record = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut record).unwrap();
        }
        let (first, rest) = record.split_at(record.len() - 1);
        let mut buf = [0; 16];
        let mut receive = || client.recv(&mut [IoSliceMut::new(&mut buf)], true);
        theirs.write_all(first).unwrap();
        let waits = receive().unwrap_err();
        assert_eq!(waits.kind(), io::ErrorKind::WouldBlock);
        theirs.write_all(rest).unwrap();
        assert_eq!(receive().unwrap(), 4);
        assert_eq!(&buf[..4], b"disk");
    }
}
