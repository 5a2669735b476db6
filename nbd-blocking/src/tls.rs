//! TLS over a socket that two threads use, one in each direction.

use crate::{patience::Patience, socket::Socket};
use bytes::{Buf, BufMut, BytesMut};
use nbd_io::tls::{
    Received, SEND_BUFFER, TlsError,
    rustls::{self, ClientConfig, ClientConnection, Connection, pki_types::ServerName},
};
use std::{
    fmt,
    future::poll_fn,
    io::{self, IoSlice, IoSliceMut, Read, Write},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

/// A TLS connection.
///
/// The three parts are locked one after the other and never while the socket is waited for, but
/// `received`, which only the one reader locks.
pub(crate) struct TlsStream {
    socket: Socket,
    connection: Mutex<Connection>,
    /// Encrypted bytes that have come and were not decrypted.
    received: Mutex<Received>,
    /// Encrypted bytes that are to be sent.
    unsent: Mutex<BytesMut>,
}

/// Why there was no handshake.
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
        patience: &Patience,
    ) -> Result<Self, TlsError> {
        let connection = ClientConnection::new(config, name.clone())
            .map_err(|source| TlsError::handshake(name, source))?;
        let done = Self::handshake(socket, connection.into(), deadline, patience).await;
        done.map_err(|failure| match failure {
            Failure::Io(source) => TlsError::Io {
                name: name.to_str().into_owned(),
                source,
            },
            Failure::Tls(source) => TlsError::handshake(name, source),
        })
    }

    async fn handshake(
        socket: Socket,
        mut connection: Connection,
        deadline: Option<Instant>,
        patience: &Patience,
    ) -> Result<Self, Failure> {
        connection.set_buffer_limit(Some(SEND_BUFFER));
        let stream = Self {
            socket,
            connection: Mutex::new(connection),
            received: Mutex::new(Received::new()),
            unsent: Mutex::new(BytesMut::new()),
        };
        loop {
            stream.flush_by(deadline, patience).await?;
            if !lock(&stream.connection).is_handshaking() {
                return Ok(stream);
            }
            // What came at once need not be taken at once.
            let is_empty = lock(&stream.received).is_empty();
            if is_empty {
                poll_fn(|_| patience.poll(&stream.socket, true, false, deadline)).await?;
                if stream.receive(&mut lock(&stream.received), false)? == 0 {
                    return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
                }
            }
            let decrypted = lock(&stream.received).decrypt(&mut lock(&stream.connection))?;
            if let Err(error) = decrypted {
                // The alert tells the peer why.
                let _ = stream.flush_by(deadline, patience).await;
                return Err(Failure::Tls(error));
            }
        }
    }

    pub(crate) const fn socket(&self) -> &Socket {
        &self.socket
    }

    pub(crate) fn recv(&self, bufs: &mut [IoSliceMut<'_>], block: bool) -> io::Result<usize> {
        let mut received = lock(&self.received);
        loop {
            let mut connection = lock(&self.connection);
            // Asking TLS what it has costs less than an attempt to read that fails.
            let state = connection.process_new_packets().map_err(io::Error::other)?;
            if state.plaintext_bytes_to_read() > 0 || state.peer_has_closed() {
                return connection.reader().read_vectored(bufs);
            }
            if received.is_empty() {
                drop(connection);
                if self.receive(&mut received, block)? == 0 {
                    return Err(io::Error::new(
                        io::ErrorKind::UnexpectedEof,
                        "the peer ended the connection without ending TLS",
                    ));
                }
                connection = lock(&self.connection);
            }
            received
                .decrypt(&mut connection)?
                .map_err(io::Error::other)?;
            if connection.wants_write() {
                drop(connection);
                self.send_ready()?;
            }
        }
    }

    pub(crate) fn send(&self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        let mut unsent = lock(&self.unsent);
        self.send_pending(&mut unsent)?;
        let n = lock(&self.connection).writer().write_vectored(bufs)?;
        self.encrypt(&mut unsent)?;
        match self.send_pending(&mut unsent) {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
            _ => Ok(n),
        }
    }

    /// Sends what earlier sends left over, as far as it fits without waiting.
    pub(crate) fn flush(&self) -> io::Result<()> {
        let mut unsent = lock(&self.unsent);
        self.encrypt(&mut unsent)?;
        self.send_pending(&mut unsent)
    }

    /// Tells the peer that no more will come.
    pub(crate) fn close_notify(&self) {
        lock(&self.connection).send_close_notify();
        let _ = self.flush();
    }

    async fn flush_by(&self, deadline: Option<Instant>, patience: &Patience) -> io::Result<()> {
        loop {
            match self.flush() {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    poll_fn(|_| patience.poll(&self.socket, false, true, deadline)).await?;
                }
                done => return done,
            }
        }
    }

    /// Sends what TLS itself has to say, if nobody else is sending and would do it anyway.
    fn send_ready(&self) -> io::Result<()> {
        let Ok(mut unsent) = self.unsent.try_lock() else {
            return Ok(());
        };
        self.encrypt(&mut unsent)?;
        match self.send_pending(&mut unsent) {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
            _ => Ok(()),
        }
    }

    fn receive(&self, received: &mut Received, block: bool) -> io::Result<usize> {
        let space = IoSliceMut::new(received.space());
        let n = self.socket.recv(&mut [space], block)?;
        received.filled(n);
        Ok(n)
    }

    fn encrypt(&self, unsent: &mut BytesMut) -> io::Result<()> {
        let mut connection = lock(&self.connection);
        while connection.wants_write() {
            connection.write_tls(&mut unsent.writer())?;
        }
        Ok(())
    }

    fn send_pending(&self, unsent: &mut BytesMut) -> io::Result<()> {
        while !unsent.is_empty() {
            let n = self.socket.send(&[IoSlice::new(unsent)], false)?;
            unsent.advance(n);
        }
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
