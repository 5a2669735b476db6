//! One option after the other over any transport, to which the order of options
//! ([`negotiate`](super::negotiate)) and [`Negotiation`](super::Negotiation) step by step come down.

mod greeting;

pub(super) use greeting::{GREETING, enter_newstyle};
pub use greeting::{Greeted, TlsOnly, greet, greet_secure};

#[cfg(feature = "tracing")]
use super::messages;
use super::{Connected, NegotiationError};
use crate::transport::{DriveError, Transport, drive, read, write_all};
use bytes::BytesMut;
use nbd_proto::{
    ContextName, Error, ExportInfo, ExportName, HeaderStyle, OptionError, Phase, Step,
    client::{
        Context, Encrypted, Go, GoOutcome, ListEntry, MetaContextEntry, Options, Plain, Rejected,
        Settled, TlsOutcome, Transmission,
    },
    wire::OptionCode,
};
use std::{
    future::poll_fn,
    io::IoSliceMut,
    mem,
    pin::pin,
    task::{self, Waker},
};

/// Limit of bytes of an answer that are read at once. Most are shorter, and so are most options.
const ANSWER: usize = 512;

/// Reads after NBD_OPT_ABORT. The answer is 20 bytes and a short text.
const LAST_READS: usize = 32;

/// A step that the server refused: the handle to go on with, and the reason.
#[derive(Debug)]
pub struct Refused<H> {
    /// The handle as it was before.
    pub handle: H,
    /// The server's reason.
    pub error: OptionError,
}

impl<H> Refused<H> {
    /// The same with another handle, made of this one.
    pub(super) fn map<U>(self, make: impl FnOnce(H) -> U) -> Refused<U> {
        Refused {
            handle: make(self.handle),
            error: self.error,
        }
    }
}

/// A connection that negotiates: one option after the other, in any order that the protocol allows.
///
/// A method that fails with [`NegotiationError::Refused`] or [`NegotiationError::Misuse`] leaves
/// the handle usable. After any other error the connection is closed, and every later call says so
/// by [`NegotiationError::Over`].
///
/// Dropping a handle that is usable ends the session as [`abort`](OptionExchange::abort) does, as far as
/// that needs no waiting.
///
/// # Cancel safety
///
/// None: a future that is dropped leaves an option half asked, and the connection is closed.
#[derive(Debug)]
pub struct OptionExchange<T: Transport, S> {
    /// `None` after a fatal error, a dropped future, or when the handle was given away.
    usable: Option<Usable<T, S>>,
    /// Bytes to be sent, and then bytes of the answer.
    buffer: BytesMut,
    encrypted: bool,
    /// TLS has started, and the server has said nothing inside it.
    tls_unproven: bool,
}

/// A connection whose server waits for an option.
#[derive(Debug)]
struct Usable<T, S> {
    /// In a box, because each option moves it.
    transport: Box<T>,
    options: Options<S>,
}

impl<T: Transport, S> OptionExchange<T, S> {
    pub(super) fn new(transport: T, options: Options<S>) -> Self {
        Self {
            usable: Some(Usable {
                transport: Box::new(transport),
                options,
            }),
            buffer: BytesMut::new(),
            encrypted: false,
            tls_unproven: false,
        }
    }

    fn inside_tls(transport: T, options: Options<S>) -> Self {
        let mut exchange = Self::new(transport, options);
        exchange.encrypted = true;
        exchange.tls_unproven = true;
        exchange
    }

    /// The headers that transmission would use if it started now.
    #[must_use]
    pub fn mode(&self) -> HeaderStyle {
        self.usable
            .as_ref()
            .map_or(HeaderStyle::Simple, |usable| usable.options.mode())
    }

    /// Lists exports.
    ///
    /// # Errors
    ///
    /// When the server refuses, or the connection fails.
    pub async fn list(&mut self) -> Result<Vec<ListEntry>, NegotiationError> {
        let Usable { transport, options } = self.take()?;
        let pending = options.list(&mut self.buffer);
        self.settle(OptionCode::List, transport, pending).await
    }

    /// Asks for the description of an export, without entering it.
    ///
    /// # Errors
    ///
    /// When the server refuses, or the connection fails.
    pub async fn info(&mut self, request: Go) -> Result<ExportInfo, NegotiationError> {
        let Usable { transport, options } = self.take()?;
        let pending = options.info(request, &mut self.buffer);
        self.settle(OptionCode::Info, transport, pending).await
    }

    /// Asks for structured replies.
    ///
    /// # Errors
    ///
    /// When they were agreed on before, the server refuses, or the connection fails.
    pub async fn structured_reply(&mut self) -> Result<(), NegotiationError> {
        let Usable { transport, options } = self.take()?;
        match options.structured_reply(&mut self.buffer) {
            Ok(pending) => {
                self.settle(OptionCode::StructuredReply, transport, pending)
                    .await
            }
            Err(rejected) => self.give_back(transport, rejected),
        }
    }

    /// Asks for extended headers.
    ///
    /// # Errors
    ///
    /// When they were agreed on before, the server refuses, or the connection fails.
    pub async fn extended_headers(&mut self) -> Result<(), NegotiationError> {
        let Usable { transport, options } = self.take()?;
        match options.extended_headers(&mut self.buffer) {
            Ok(pending) => {
                self.settle(OptionCode::ExtendedHeaders, transport, pending)
                    .await
            }
            Err(rejected) => self.give_back(transport, rejected),
        }
    }

    /// Lists the meta contexts of an export that match the queries; all without a query.
    ///
    /// # Errors
    ///
    /// When the server refuses, or the connection fails.
    pub async fn list_meta_context(
        &mut self,
        export: &ExportName,
        queries: &[ContextName],
    ) -> Result<Vec<MetaContextEntry>, NegotiationError> {
        let Usable { transport, options } = self.take()?;
        let pending = options.list_meta_context(export, queries, &mut self.buffer);
        self.settle(OptionCode::ListMetaContext, transport, pending)
            .await
    }

    /// Selects the meta contexts that block status is to report of an export.
    ///
    /// # Errors
    ///
    /// When no structured replies were agreed on, the server refuses, or the connection fails.
    pub async fn set_meta_context(
        &mut self,
        export: &ExportName,
        queries: &[ContextName],
    ) -> Result<Vec<Context>, NegotiationError> {
        let Usable { transport, options } = self.take()?;
        match options.set_meta_context(export, queries, &mut self.buffer) {
            Ok(pending) => {
                self.settle(OptionCode::SetMetaContext, transport, pending)
                    .await
            }
            Err(rejected) => self.give_back(transport, rejected),
        }
    }

    /// Enters an export.
    ///
    /// # Errors
    ///
    /// When the server refuses, with the handle to go on with; or when the connection fails.
    pub async fn go(
        mut self,
        request: Go,
    ) -> Result<Result<Connected<T>, Refused<Self>>, NegotiationError> {
        let Usable {
            mut transport,
            options,
        } = self.take()?;
        let pending = options.go(request, &mut self.buffer);
        let outcome = self.drive(OptionCode::Go, &mut *transport, pending).await?;
        Ok(match outcome {
            GoOutcome::Accepted(transmission) => Ok(Connected {
                transport: *transport,
                transmission: Box::new(transmission),
                encrypted: self.encrypted,
            }),
            GoOutcome::Refused(options, error) => {
                self.usable = Some(Usable { transport, options });
                Err(Refused {
                    handle: self,
                    error,
                })
            }
        })
    }

    /// Enters an export by the option that servers without `NBD_OPT_GO` know.
    ///
    /// # Errors
    ///
    /// When extended headers were agreed on; or when the connection fails, which is how a server
    /// refuses this option.
    pub async fn export_name(
        mut self,
        name: &ExportName,
    ) -> Result<Connected<T>, NegotiationError> {
        let Usable { transport, options } = self.take()?;
        match options.export_name(name, &mut self.buffer) {
            Ok(pending) => {
                let out = mem::take(&mut self.buffer);
                enter_by_name(*transport, out, pending, name, self.encrypted).await
            }
            Err(rejected) => self.give_back(transport, rejected),
        }
    }

    /// Ends the session as the protocol asks for.
    pub async fn abort(mut self) {
        if let Some(Usable {
            mut transport,
            options,
        }) = self.usable.take()
        {
            options.abort(&mut self.buffer);
            send_abort(&mut *transport, &mut self.buffer).await;
        }
    }

    /// The transport, unless the connection is over.
    pub(super) fn transport_mut(&mut self) -> Option<&mut T> {
        Some(&mut *self.usable.as_mut()?.transport)
    }

    fn take(&mut self) -> Result<Usable<T, S>, NegotiationError> {
        self.usable.take().ok_or(NegotiationError::Over)
    }

    fn give_back<R>(
        &mut self,
        transport: Box<T>,
        rejected: Rejected<S>,
    ) -> Result<R, NegotiationError> {
        let options = rejected.options;
        self.usable = Some(Usable { transport, options });
        Err(NegotiationError::Misuse(rejected.misuse))
    }

    async fn settle<P, R>(
        &mut self,
        option: OptionCode,
        mut transport: Box<T>,
        pending: P,
    ) -> Result<R, NegotiationError>
    where
        P: Phase<Next = Settled<S, R>>,
    {
        let Settled { options, result } = self.drive(option, &mut *transport, pending).await?;
        #[cfg(feature = "tracing")]
        if let Err(refusal) = &result {
            tracing::debug!("{refusal}");
        }
        self.usable = Some(Usable { transport, options });
        result.map_err(NegotiationError::Refused)
    }

    /// Sends an option and takes in its answer, to the next phase. Behind its last reply nothing may
    /// come, so that it is read without regard to where messages end.
    async fn drive<P: Phase>(
        &mut self,
        option: OptionCode,
        transport: &mut T,
        mut pending: P,
    ) -> Result<P::Next, NegotiationError> {
        let unproven = mem::take(&mut self.tls_unproven);
        let failed = |error| {
            let broke_off = unproven && !matches!(error, DriveError::Protocol(_));
            let error = NegotiationError::during(option, error);
            if broke_off {
                NegotiationError::TlsBrokeOff(Box::new(error))
            } else {
                error
            }
        };
        #[cfg(feature = "tracing")]
        messages::option_sent(option, self.buffer.len());
        let written = write_all(transport, &mut self.buffer).await;
        written.map_err(|error| failed(error.into()))?;
        #[cfg(feature = "tracing")]
        let mut replies = messages::OptionReplies::default();
        loop {
            self.buffer.resize(ANSWER, 0);
            let read = read(transport, &mut self.buffer).await;
            let n = read.map_err(|error| failed(error.into()))?;
            if n == 0 {
                return Err(failed(DriveError::Closed));
            }
            #[cfg(feature = "tracing")]
            replies.feed(&self.buffer[..n]);
            // A client has nothing to say before its option is answered.
            let fed = pending.feed(&self.buffer[..n], &mut BytesMut::new());
            self.buffer.clear();
            match fed.map_err(|error| failed(error.into()))? {
                (_, Step::More(more)) => pending = more,
                (used, Step::Done(next)) if used == n => return Ok(next),
                // C-026
                (_, Step::Done(_)) => return Err(failed(Error::AfterLastReply { option }.into())),
            }
        }
    }
}

impl<T: Transport, S> Drop for OptionExchange<T, S> {
    fn drop(&mut self) {
        if let Some(Usable {
            mut transport,
            options,
        }) = self.usable.take()
        {
            transport.fail_instead_of_waiting();
            options.abort(&mut self.buffer);
            // Polled once: a step that would wait is left out.
            let abort = pin!(send_abort(&mut *transport, &mut self.buffer));
            let _ = abort.poll(&mut task::Context::from_waker(Waker::noop()));
        }
    }
}

impl<T: Transport> OptionExchange<T, Plain> {
    /// Starts TLS; `upgrade` does the TLS handshake on the transport.
    ///
    /// # Errors
    ///
    /// When the server refuses, with the handle to go on with; or when the transport or the TLS
    /// handshake fails, after which nothing may be sent in the clear.
    pub async fn start_tls<U, F>(
        mut self,
        upgrade: impl FnOnce(T) -> F,
    ) -> Result<Result<OptionExchange<U, Encrypted>, Refused<Self>>, NegotiationError>
    where
        U: Transport,
        F: Future<Output = Result<U, NegotiationError>>,
    {
        let Usable {
            mut transport,
            options,
        } = self.take()?;
        let pending = options.start_tls(&mut self.buffer);
        #[cfg(feature = "tracing")]
        messages::option_sent(OptionCode::StartTls, self.buffer.len());
        // To the byte: behind the answer begins TLS.
        let outcome = drive(&mut *transport, &mut self.buffer, pending)
            .await
            .map_err(|error| NegotiationError::during(OptionCode::StartTls, error))?;
        #[cfg(feature = "tracing")]
        messages::tls_answered(&outcome);
        Ok(match outcome {
            TlsOutcome::Accepted(ready) => {
                let transport = upgrade(*transport).await?;
                Ok(OptionExchange::inside_tls(transport, ready.upgraded()))
            }
            TlsOutcome::Refused(options, error) => {
                self.usable = Some(Usable { transport, options });
                Err(Refused {
                    handle: self,
                    error,
                })
            }
        })
    }
}

/// Sends `NBD_OPT_EXPORT_NAME`, which is in `out`, and waits for the answer. A server refuses by
/// closing the connection.
async fn enter_by_name<T: Transport>(
    mut transport: T,
    mut out: BytesMut,
    pending: impl Phase<Next = Transmission>,
    name: &ExportName,
    encrypted: bool,
) -> Result<Connected<T>, NegotiationError> {
    #[cfg(feature = "tracing")]
    messages::option_sent(OptionCode::ExportName, out.len());
    match drive(&mut transport, &mut out, pending).await {
        Ok(transmission) => Ok(Connected {
            transport,
            transmission: Box::new(transmission),
            encrypted,
        }),
        Err(DriveError::Closed) => Err(NegotiationError::ExportNameRefused { name: name.clone() }),
        Err(error) => Err(NegotiationError::during(OptionCode::ExportName, error)),
    }
}

/// Sends NBD_OPT_ABORT and waits for the answer, or the end of the stream. The peer may be gone
/// already, which does not matter.
async fn send_abort<T: Transport>(transport: &mut T, out: &mut BytesMut) {
    #[cfg(feature = "tracing")]
    messages::option_sent(OptionCode::Abort, out.len());
    if write_all(transport, out).await.is_err()
        || poll_fn(|cx| transport.poll_shutdown(cx)).await.is_err()
    {
        return;
    }
    let mut answer = [0; 256];
    for _ in 0..LAST_READS {
        let mut bufs = [IoSliceMut::new(&mut answer)];
        let read = poll_fn(|cx| transport.poll_read(cx, &mut bufs)).await;
        if !matches!(read, Ok(1..)) {
            return;
        }
    }
}

#[cfg(test)]
mod tests;
