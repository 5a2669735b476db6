//! The seam between this crate and a runtime: a byte stream that is polled.

use crate::server::Peer;
#[cfg(feature = "tls")]
use crate::{
    client::NegotiationError,
    tls::{
        PeerNames, TlsError, TlsTransport,
        rustls::{ClientConfig, Connection, ProtocolVersion, pki_types::ServerName},
    },
};
use bytes::{Buf, BytesMut};
use nbd_proto::{Error, Phase, Step};
#[cfg(feature = "tls")]
use std::sync::Arc;
use std::{
    future::poll_fn,
    io::{self, IoSlice, IoSliceMut},
    pin::pin,
    task::{Context, Poll, Waker},
};

/// A byte stream in both directions.
///
/// One implementation per runtime is enough: it holds that runtime's socket, or TLS over it. A
/// blocking stream implements it by never returning [`Poll::Pending`].
///
/// A read and a write may pend at the same time: each wakes the task that polled it last.
pub trait Transport {
    /// Pends if the transport knows that a read would, and wakes the task as that does; otherwise a
    /// read is worth an attempt. So a reader that has to wait need not prepare a buffer.
    ///
    /// # Errors
    ///
    /// Like [`poll_read`](Transport::poll_read).
    fn poll_read_ready(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let _ = cx;
        Poll::Ready(Ok(()))
    }

    /// Reads into `bufs` in order. 0 bytes are the end of the stream.
    ///
    /// # Errors
    ///
    /// When the stream is broken, or a deadline of the implementation's has passed.
    fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
    ) -> Poll<io::Result<usize>>;

    /// Writes from `bufs` in order.
    ///
    /// # Errors
    ///
    /// Like [`poll_read`](Transport::poll_read).
    fn poll_write(&mut self, cx: &mut Context<'_>, bufs: &[IoSlice<'_>])
    -> Poll<io::Result<usize>>;

    /// Sends bytes of earlier writes that are in buffers of the implementation's.
    ///
    /// # Errors
    ///
    /// Like [`poll_read`](Transport::poll_read).
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;

    /// Announces to the peer that no more bytes will come; ends TLS if it is up. Afterwards, a
    /// stream that waits instead of pending must not wait long: a client's last reads are for the
    /// answer to its NBD_OPT_ABORT. They fail if it does not come in about 2 s.
    ///
    /// # Errors
    ///
    /// Like [`poll_read`](Transport::poll_read).
    fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;

    /// Takes note that the connection is given up: every operation that would have to wait from now
    /// on has to fail instead. Only for a transport that waits instead of pending; others need not
    /// implement it.
    fn fail_instead_of_waiting(&mut self) {}

    /// Whether the next call is all that there is to be waited for. A transport that waits with
    /// less effort than its runtime may then do so for a moment, up to 100 ms, before it pends.
    fn set_exclusive(&mut self, alone: bool) {
        let _ = alone;
    }

    /// Whether this waits instead of pending, and so keeps its thread from everything else. A
    /// server then carries out one request at a time.
    fn is_blocking(&self) -> bool {
        false
    }

    /// Whether a session may end by dropping this, once every byte of the peer's was read: the peer
    /// receives all written bytes and then the end of the stream. That holds for sockets. Otherwise
    /// a session ends with [`poll_shutdown`](Transport::poll_shutdown) and with reads until the peer
    /// closes.
    fn closes_gracefully_on_drop(&self) -> bool {
        false
    }

    /// The certificate by which the peer has proven who it is, in DER. None without TLS, or where
    /// the peer was not asked.
    fn peer_certificate(&self) -> Option<&[u8]> {
        None
    }

    /// The TLS session, if this is inside one.
    fn tls_session(&self) -> Option<TlsSession> {
        None
    }

    /// The peer at the other end, for the events of a server that
    /// [serves](crate::server::Server::serve_over) this stream alone.
    fn peer(&self) -> Peer {
        Peer::Other
    }
}

macro_rules! forward {
    ($pointer:ty) => {
        impl<T: Transport + ?Sized> Transport for $pointer {
            fn poll_read_ready(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                (**self).poll_read_ready(cx)
            }

            fn poll_read(
                &mut self,
                cx: &mut Context<'_>,
                bufs: &mut [IoSliceMut<'_>],
            ) -> Poll<io::Result<usize>> {
                (**self).poll_read(cx, bufs)
            }

            fn poll_write(
                &mut self,
                cx: &mut Context<'_>,
                bufs: &[IoSlice<'_>],
            ) -> Poll<io::Result<usize>> {
                (**self).poll_write(cx, bufs)
            }

            fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                (**self).poll_flush(cx)
            }

            fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                (**self).poll_shutdown(cx)
            }

            fn fail_instead_of_waiting(&mut self) {
                (**self).fail_instead_of_waiting();
            }

            fn set_exclusive(&mut self, alone: bool) {
                (**self).set_exclusive(alone);
            }

            fn is_blocking(&self) -> bool {
                (**self).is_blocking()
            }

            fn closes_gracefully_on_drop(&self) -> bool {
                (**self).closes_gracefully_on_drop()
            }

            fn peer_certificate(&self) -> Option<&[u8]> {
                (**self).peer_certificate()
            }

            fn tls_session(&self) -> Option<TlsSession> {
                (**self).tls_session()
            }

            fn peer(&self) -> Peer {
                (**self).peer()
            }
        }
    };
}

forward!(&mut T);
forward!(Box<T>);

/// The agreement of two peers on TLS, and the certificates of the other one.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TlsSession {
    /// The version of the protocol: `TLS 1.3`, or `TLS 1.2`.
    pub version: &'static str,
    /// The cipher suite, by its registered name.
    pub cipher_suite: &'static str,
    /// The chain of certificates that the peer has shown, in DER, its own first.
    pub peer_certificates: Vec<Vec<u8>>,
}

#[cfg(feature = "tls")]
impl TlsSession {
    /// The session; `None` before the handshake is done.
    #[must_use]
    pub fn of(connection: &Connection) -> Option<Self> {
        let certificates = connection.peer_certificates().unwrap_or_default();
        Some(Self {
            version: match connection.protocol_version()? {
                ProtocolVersion::TLSv1_3 => "TLS 1.3",
                ProtocolVersion::TLSv1_2 => "TLS 1.2",
                _ => "TLS",
            },
            cipher_suite: connection
                .negotiated_cipher_suite()?
                .suite()
                .as_str()
                .unwrap_or("unknown"),
            peer_certificates: certificates.iter().map(|der| der.to_vec()).collect(),
        })
    }

    /// The names in the peer's certificate; `None` if it has shown none.
    ///
    /// # Errors
    ///
    /// When they cannot be understood.
    pub fn peer_names(&self) -> Result<Option<PeerNames>, TlsError> {
        let own = self.peer_certificates.first();
        own.map(|der| PeerNames::of(der)).transpose()
    }
}

/// A transport in the clear, or TLS over it.
#[derive(Debug)]
pub enum Layered<T: Transport> {
    /// In the clear.
    Plain(T),
    /// Inside TLS.
    #[cfg(feature = "tls")]
    Tls(Box<TlsTransport<T>>),
}

impl<T: Transport> Layered<T> {
    /// The transport below.
    pub(crate) fn transport_mut(&mut self) -> &mut T {
        match self {
            Self::Plain(transport) => transport,
            #[cfg(feature = "tls")]
            Self::Tls(tls) => tls.transport_mut(),
        }
    }
}

#[cfg(feature = "tls")]
impl<T: Transport> Layered<T> {
    /// Does the TLS handshake with a server, whose certificate has to be made out to `name`; see
    /// [`ClientTls::client`](crate::tls::ClientTls::client) for both.
    ///
    /// # Errors
    ///
    /// When the handshake fails, or TLS is up already.
    ///
    /// # Cancel safety
    ///
    /// None: the transport is lost with the future.
    pub async fn start_tls(
        self,
        config: Arc<ClientConfig>,
        name: ServerName<'static>,
    ) -> Result<Self, NegotiationError> {
        let Self::Plain(transport) = self else {
            return Err(NegotiationError::Tls("there is no TLS inside TLS".into()));
        };
        let tls = TlsTransport::connect(transport, config, name).await?;
        Ok(Self::Tls(Box::new(tls)))
    }
}

impl<T: Transport> Transport for Layered<T> {
    fn poll_read_ready(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Plain(transport) => transport.poll_read_ready(cx),
            // Messages of TLS itself are sent by reads.
            #[cfg(feature = "tls")]
            Self::Tls(_) => Poll::Ready(Ok(())),
        }
    }

    fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
    ) -> Poll<io::Result<usize>> {
        match self {
            Self::Plain(transport) => transport.poll_read(cx, bufs),
            #[cfg(feature = "tls")]
            Self::Tls(tls) => tls.poll_read(cx, bufs),
        }
    }

    fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self {
            Self::Plain(transport) => transport.poll_write(cx, bufs),
            #[cfg(feature = "tls")]
            Self::Tls(tls) => tls.poll_write(cx, bufs),
        }
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Plain(transport) => transport.poll_flush(cx),
            #[cfg(feature = "tls")]
            Self::Tls(tls) => tls.poll_flush(cx),
        }
    }

    fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Plain(transport) => transport.poll_shutdown(cx),
            #[cfg(feature = "tls")]
            Self::Tls(tls) => tls.poll_shutdown(cx),
        }
    }

    fn fail_instead_of_waiting(&mut self) {
        match self {
            Self::Plain(transport) => transport.fail_instead_of_waiting(),
            #[cfg(feature = "tls")]
            Self::Tls(tls) => tls.fail_instead_of_waiting(),
        }
    }

    fn set_exclusive(&mut self, alone: bool) {
        match self {
            Self::Plain(transport) => transport.set_exclusive(alone),
            #[cfg(feature = "tls")]
            Self::Tls(tls) => tls.set_exclusive(alone),
        }
    }

    fn is_blocking(&self) -> bool {
        match self {
            Self::Plain(transport) => transport.is_blocking(),
            #[cfg(feature = "tls")]
            Self::Tls(tls) => tls.is_blocking(),
        }
    }

    fn closes_gracefully_on_drop(&self) -> bool {
        match self {
            Self::Plain(transport) => transport.closes_gracefully_on_drop(),
            // The peer may still say that it ends TLS.
            #[cfg(feature = "tls")]
            Self::Tls(_) => false,
        }
    }

    fn peer_certificate(&self) -> Option<&[u8]> {
        match self {
            Self::Plain(transport) => transport.peer_certificate(),
            #[cfg(feature = "tls")]
            Self::Tls(tls) => tls.peer_certificate(),
        }
    }

    fn tls_session(&self) -> Option<TlsSession> {
        match self {
            Self::Plain(transport) => transport.tls_session(),
            #[cfg(feature = "tls")]
            Self::Tls(tls) => tls.tls_session(),
        }
    }
}

/// Reasons for which a phase of the negotiation did not reach its end.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DriveError {
    /// The stream is broken.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The peer broke the protocol.
    #[error(transparent)]
    Protocol(#[from] Error),
    /// The stream ended inside a phase.
    #[error("the peer closed the connection")]
    Closed,
}

/// Drives a phase of the negotiation to its end: writes `out`, then reads the bytes that the phase
/// asks for and no more, and so on.
///
/// # Errors
///
/// When the stream breaks or ends, or the peer breaks the protocol. The transport is to be closed
/// then, without sending anything else.
///
/// # Cancel safety
///
/// None: the phase is gone with a future that is dropped, and the transport is to be closed.
pub fn drive<T: Transport, P: Phase>(
    transport: &mut T,
    out: &mut BytesMut,
    phase: P,
) -> impl Future<Output = Result<P::Next, DriveError>> {
    step_through(transport, out, phase, true)
}

/// Like [`drive`], but leaves the last bytes to be written in `out`, to go with the next ones.
pub(crate) fn drive_before<T: Transport, P: Phase>(
    transport: &mut T,
    out: &mut BytesMut,
    phase: P,
) -> impl Future<Output = Result<P::Next, DriveError>> {
    step_through(transport, out, phase, false)
}

async fn step_through<T: Transport, P: Phase>(
    transport: &mut T,
    out: &mut BytesMut,
    mut phase: P,
    writes_last: bool,
) -> Result<P::Next, DriveError> {
    loop {
        write_all(transport, out).await?;
        let n = read(transport, phase.space()).await?;
        if n == 0 {
            return Err(DriveError::Closed);
        }
        match phase.filled(n, out)? {
            Step::More(more) => phase = more,
            Step::Done(next) => {
                if writes_last {
                    write_all(transport, out).await?;
                }
                return Ok(next);
            }
        }
    }
}

/// Writes and flushes all of `out`, and leaves it empty.
///
/// # Errors
///
/// When the stream is broken.
///
/// # Cancel safety
///
/// None: written bytes are no longer in `out`, but may not have been flushed.
pub async fn write_all<T: Transport>(transport: &mut T, out: &mut BytesMut) -> io::Result<()> {
    if out.is_empty() {
        return Ok(());
    }
    while !out.is_empty() {
        let n = poll_fn(|cx| transport.poll_write(cx, &[IoSlice::new(out)])).await?;
        if n == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        if n == out.len() {
            // Keeps the memory, unlike a split.
            out.clear();
        } else {
            out.advance(n);
        }
    }
    poll_fn(|cx| transport.poll_flush(cx)).await
}

pub(crate) async fn read<T: Transport>(transport: &mut T, space: &mut [u8]) -> io::Result<usize> {
    poll_fn(|cx| transport.poll_read(cx, &mut [IoSliceMut::new(space)])).await
}

/// Runs a future of this crate over a transport that never pends, such as a blocking socket.
///
/// # Panics
///
/// When the transport pends after all.
pub fn block_on_ready<F: Future>(future: F) -> F::Output {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => output,
        Poll::Pending => panic!("a blocking transport never pends"),
    }
}
