//! TLS over any transport.

use super::{Received, SEND_BUFFER, TlsError};
use crate::transport::{TlsSession, Transport};
use rustls::{
    ClientConfig, ClientConnection, Connection, ServerConfig, ServerConnection,
    pki_types::{CertificateDer, ServerName},
};
use std::{
    fmt,
    future::poll_fn,
    io::{self, IoSlice, IoSliceMut, Write},
    sync::Arc,
    task::{Context, Poll, Waker, ready},
};

#[cfg(all(test, any(feature = "aws-lc-rs", feature = "ring")))]
mod tests;

/// TLS over a transport, for either role, used by one task at a time.
///
/// Reads and writes do not wait for each other: each of them may pend while the other goes on.
/// Messages of TLS itself, such as a new key, are sent by the one that is polled next.
///
/// The end of the transport without the end of TLS is an error of the kind
/// [`io::ErrorKind::UnexpectedEof`], since an attacker on the way could have cut the connection.
/// Dropping this ends TLS, as far as that needs no waiting.
pub struct TlsTransport<T: Transport> {
    transport: T,
    connection: Connection,
    received: Received,
    /// A caller waits to write, and will be woken when that is possible. A reader that tried to
    /// send would take that wake-up away.
    writer_waits: bool,
    closing: bool,
}

/// Reasons for which a handshake failed.
enum Failure {
    Io(io::Error),
    Tls(rustls::Error),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl<T: Transport> TlsTransport<T> {
    /// Does the handshake with a server, whose certificate has to be made out to `name`.
    ///
    /// # Errors
    ///
    /// When the server's certificate is refused, the handshake fails otherwise, or the connection
    /// breaks. The server was sent an alert, as far as the transport still carries it.
    ///
    /// # Cancel safety
    ///
    /// None: the transport is lost with the future.
    pub async fn connect(
        transport: T,
        config: Arc<ClientConfig>,
        name: ServerName<'static>,
    ) -> Result<Self, TlsError> {
        let connection = ClientConnection::new(config, name.clone())
            .map_err(|source| TlsError::handshake(&name, source))?;
        Self::handshake(transport, connection.into())
            .await
            .map_err(|failure| match failure {
                Failure::Io(source) => TlsError::Io {
                    name: name.to_str().into_owned(),
                    source,
                },
                Failure::Tls(source) => TlsError::handshake(&name, source),
            })
    }

    /// Does the handshake with a client.
    ///
    /// # Errors
    ///
    /// When the client's certificate is refused or missing, the handshake fails otherwise, or the
    /// connection breaks. The client was sent an alert, as far as the transport still
    /// carries it.
    ///
    /// # Cancel safety
    ///
    /// None: the transport is lost with the future.
    pub async fn accept(transport: T, config: Arc<ServerConfig>) -> Result<Self, TlsError> {
        let connection = ServerConnection::new(config).map_err(TlsError::Client)?;
        Self::handshake(transport, connection.into())
            .await
            .map_err(|failure| match failure {
                Failure::Io(source) => TlsError::ClientIo(source),
                Failure::Tls(source) => TlsError::Client(source),
            })
    }

    async fn handshake(transport: T, mut connection: Connection) -> Result<Self, Failure> {
        connection.set_buffer_limit(Some(SEND_BUFFER));
        let mut tls = Self {
            transport,
            connection,
            received: Received::new(),
            writer_waits: false,
            closing: false,
        };
        let shaken = poll_fn(|cx| tls.poll_handshake(cx)).await;
        if let Err(Failure::Tls(_)) = shaken {
            // The alert carries the reason to the peer.
            let _ = poll_fn(|cx| tls.poll_flush(cx)).await;
        }
        shaken.map(|()| tls)
    }

    fn poll_handshake(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        loop {
            // The peer may wait for this side to read before it reads itself.
            let flushed = self.poll_flush(cx)?;
            if !self.connection.is_handshaking() {
                return flushed.map(Ok);
            }
            // Bytes that came with earlier ones are taken first.
            if self.received.is_empty() {
                ready!(self.poll_receive(cx))?;
            }
            let decrypted = self.received.decrypt(&mut self.connection)?;
            decrypted.map_err(Failure::Tls)?;
        }
    }

    /// The certificates that the peer has shown, its own first. A client need not have any.
    #[must_use]
    pub fn peer_certificates(&self) -> Option<&[CertificateDer<'static>]> {
        self.connection.peer_certificates()
    }

    /// The transport below.
    #[must_use]
    pub const fn transport(&self) -> &T {
        &self.transport
    }

    /// The transport below. Its bytes are TLS's business.
    pub(crate) const fn transport_mut(&mut self) -> &mut T {
        &mut self.transport
    }

    /// Waits for encrypted bytes, of which none may be there.
    fn poll_receive(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let space = IoSliceMut::new(self.received.space());
        match ready!(self.transport.poll_read(cx, &mut [space]))? {
            0 => Poll::Ready(Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the peer ended the connection without ending TLS",
            ))),
            n => {
                self.received.filled(n);
                Poll::Ready(Ok(()))
            }
        }
    }

    /// Sends everything that is encrypted.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let transport = &mut self.transport;
        while self.connection.wants_write() {
            match self.connection.write_tls(&mut Outgoing { transport, cx }) {
                Ok(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Poll::Pending,
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        Poll::Ready(Ok(()))
    }

    fn poll_send_and_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_send(cx))?;
        self.transport.poll_flush(cx)
    }

    /// Sends TLS's own records, if no writer waits to send anyway. A reader does not wait
    /// for it, because the peer may do the same. A failure is left to the next writer to report:
    /// bytes that the peer sent before can still be read.
    fn send_aside(&mut self, cx: &mut Context<'_>) {
        if self.connection.wants_write() && !self.writer_waits {
            let _ = self.poll_send_and_flush(cx);
        }
    }
}

impl<T: Transport> Transport for TlsTransport<T> {
    fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
    ) -> Poll<io::Result<usize>> {
        loop {
            let read = self.received.read(&mut self.connection, bufs);
            if let Some(done) = read.transpose() {
                if done.is_err() {
                    self.send_aside(cx);
                }
                return Poll::Ready(done);
            }
            self.send_aside(cx);
            ready!(self.poll_receive(cx))?;
        }
    }

    fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let sent = self.poll_send(cx);
        self.writer_waits = sent.is_pending();
        ready!(sent)?;
        let n = self.connection.writer().write_vectored(bufs)?;
        match self.poll_send(cx) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            // The rest goes with the next write, or the flush.
            Poll::Ready(Ok(())) | Poll::Pending => Poll::Ready(Ok(n)),
        }
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = self.poll_send_and_flush(cx);
        self.writer_waits = flushed.is_pending();
        flushed
    }

    fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.closing {
            self.closing = true;
            self.connection.send_close_notify();
        }
        ready!(self.poll_flush(cx))?;
        self.transport.poll_shutdown(cx)
    }

    fn set_exclusive(&mut self, alone: bool) {
        self.transport.set_exclusive(alone);
    }

    fn is_blocking(&self) -> bool {
        self.transport.is_blocking()
    }

    fn peer_certificate(&self) -> Option<&[u8]> {
        let own = self.peer_certificates()?.first()?;
        Some(own)
    }

    fn tls_session(&self) -> Option<TlsSession> {
        TlsSession::of(&self.connection)
    }

    fn fail_instead_of_waiting(&mut self) {
        self.transport.fail_instead_of_waiting();
    }
}

impl<T: Transport> Drop for TlsTransport<T> {
    fn drop(&mut self) {
        // C-040, S-023
        if !self.closing && !self.connection.is_handshaking() && !self.transport.is_blocking() {
            self.connection.send_close_notify();
            let _ = self.poll_send_and_flush(&mut Context::from_waker(Waker::noop()));
        }
    }
}

impl<T: Transport + fmt::Debug> fmt::Debug for TlsTransport<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsTransport")
            .field("transport", &self.transport)
            .field("received", &self.received)
            .finish_non_exhaustive()
    }
}

/// A transport as rustls writes to it.
struct Outgoing<'a, 'b, T> {
    transport: &'a mut T,
    cx: &'a mut Context<'b>,
}

impl<T: Transport> Write for Outgoing<'_, '_, T> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.write_vectored(&[IoSlice::new(buf)])
    }

    fn write_vectored(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        match self.transport.poll_write(self.cx, bufs) {
            Poll::Ready(written) => written,
            Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
