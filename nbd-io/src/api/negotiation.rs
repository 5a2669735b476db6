//! The step-by-step negotiation of each driver.

/// Defines the types of a driver's module `negotiation`, which wait as `$wait` and `$await` say.
#[doc(hidden)]
#[macro_export]
macro_rules! driver_negotiation {
    (
        driver: $driver:ident,
        waiting: [$($async:tt)?] $wait:path, [$($await:tt)*],
        examples: $begin:literal, $dot_await:literal, $end:literal,
    ) => {
        use super::{$driver, Client, ContextName, Error, ExportInfo, ExportName, HeaderStyle};
        #[doc(inline)]
        pub use $crate::client::{NegotiationError, Refused, StepOutcome};
        #[doc(inline)]
        pub use $crate::nbd_proto::client::{
            Context, Encrypted, Go, InfoSet, ListEntry, MetaContextEntry, Plain,
        };

        /// The kind of handshake that a server speaks, to go on step by step.
        ///
        /// ```no_run
        #[doc = $begin]
        /// use negotiation::Greeted;
        ///
        #[doc = concat!("let disk = match options.start(&\"nbd://localhost\".parse()?)", $dot_await, "? {")]
        #[doc = concat!("    Greeted::FixedNewstyle(negotiation) => negotiation.export_name(&\"disk\".parse()?)", $dot_await, "?,")]
        #[doc = concat!("    Greeted::Newstyle(newstyle) => newstyle.export_name(&\"disk\".parse()?)", $dot_await, "?,")]
        #[doc = concat!("    Greeted::Oldstyle(oldstyle) => oldstyle.accept()", $dot_await, "?,")]
        /// };
        #[doc = $end]
        /// ```
        #[derive(Debug)]
        pub enum Greeted {
            /// Fixed newstyle: the whole protocol.
            FixedNewstyle(Negotiation<Plain>),
            /// Newstyle that is not fixed: an export can be entered by its name and nothing else be
            /// asked.
            Newstyle(Newstyle),
            /// Oldstyle: the server has entered its only export already.
            Oldstyle(Oldstyle),
        }

        impl Greeted {
            /// The negotiation, if the server speaks fixed newstyle.
            #[must_use]
            pub fn negotiation(self) -> Option<Negotiation<Plain>> {
                match self {
                    Self::FixedNewstyle(negotiation) => Some(negotiation),
                    Self::Newstyle(_) | Self::Oldstyle(_) => None,
                }
            }
        }

        impl From<$crate::client::Greeted<$driver>> for Greeted {
            fn from(greeted: $crate::client::Greeted<$driver>) -> Self {
                use $crate::client::Greeted as Inner;
                match greeted {
                    Inner::FixedNewstyle(negotiation) => Self::FixedNewstyle(negotiation.into()),
                    Inner::Newstyle(newstyle) => Self::Newstyle(Newstyle(newstyle)),
                    Inner::Oldstyle(oldstyle) => Self::Oldstyle(Oldstyle(oldstyle)),
                }
            }
        }

        /// A server that can only be asked for one export.
        #[derive(Debug)]
        pub struct Newstyle($crate::client::Newstyle<$driver>);

        impl Newstyle {
            /// Enters an export.
            ///
            /// # Errors
            ///
            /// When the connection fails or is closed, which is how such a server refuses.
            pub $($async)? fn export_name(self, name: &ExportName) -> Result<Client, Error> {
                $wait(self.0.export_name(name)) $($await)*.map(Client::from)
            }
        }

        /// A server with a single export.
        #[derive(Debug)]
        pub struct Oldstyle($crate::client::Oldstyle<$driver>);

        impl Oldstyle {
            /// The export as the server described it. To refuse it, drop this value.
            #[must_use]
            pub const fn export(&self) -> &ExportInfo {
                self.0.export()
            }

            /// Goes on to transmission.
            ///
            /// # Errors
            ///
            /// When the connection cannot be used.
            pub $($async)? fn accept(self) -> Result<Client, Error> {
                $wait(self.0.accept()) $($await)*.map(Client::from)
            }
        }

        /// An option that the server has refused, and the negotiation, which goes on.
        pub type RefusedStep<S> = Refused<Negotiation<S>>;

        /// The server's answer to the wish to start TLS.
        pub type TlsOutcome = StepOutcome<Negotiation<Encrypted>, Negotiation<Plain>>;

        /// A server that waits for an option: one after the other can be sent until an export is
        /// entered.
        ///
        /// ```no_run
        #[doc = $begin]
        #[doc = concat!("let greeted = options.start(&\"nbd://localhost\".parse()?)", $dot_await, "?;")]
        /// let mut negotiation = greeted.negotiation().ok_or("the server is an old one")?;
        #[doc = concat!("for entry in negotiation.list()", $dot_await, "? {")]
        ///     println!("{:?}: {}", entry.name, entry.description);
        /// }
        #[doc = concat!("negotiation.abort()", $dot_await, ";")]
        #[doc = $end]
        /// ```
        ///
        /// An option that the server refuses leaves it usable; after any other error it is over.
        /// The [`negotiation_timeout`](crate::ConnectOptions::negotiation_timeout) is for all steps
        /// together.
        ///
        /// Dropping it sends `NBD_OPT_ABORT` like [`abort`](Self::abort), but waits for nothing. A
        /// future of it that is dropped leaves an option half asked, and the connection is closed.
        ///
        /// Spec: [Option
        /// types](https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md#option-types).
        #[derive(Debug)]
        pub struct Negotiation<S>($crate::client::Negotiation<$driver, S>);

        impl<S> From<$crate::client::Negotiation<$driver, S>> for Negotiation<S> {
            fn from(negotiation: $crate::client::Negotiation<$driver, S>) -> Self {
                Self(negotiation)
            }
        }

        impl<S: Send + 'static> Negotiation<S> {
            /// The headers that transmission would use if it started now.
            #[must_use]
            pub fn mode(&self) -> HeaderStyle {
                self.0.mode()
            }

            /// Lists exports with their descriptions. A server may keep some of them to itself.
            ///
            /// # Errors
            ///
            /// When the server refuses, or the connection fails.
            pub $($async)? fn list(&mut self) -> Result<Vec<ListEntry>, Error> {
                $wait(self.0.list()) $($await)*
            }

            /// Asks for the description of an export, without entering it.
            ///
            /// # Errors
            ///
            /// When the server refuses, or the connection fails.
            pub $($async)? fn info(&mut self, request: Go) -> Result<ExportInfo, Error> {
                $wait(self.0.info(request)) $($await)*
            }

            /// Asks for structured replies.
            ///
            /// # Errors
            ///
            /// When they were agreed on before, the server refuses, or the connection fails.
            pub $($async)? fn structured_reply(&mut self) -> Result<(), Error> {
                $wait(self.0.structured_reply()) $($await)*
            }

            /// Asks for extended headers.
            ///
            /// # Errors
            ///
            /// When they were agreed on before, the server refuses, or the connection fails.
            pub $($async)? fn extended_headers(&mut self) -> Result<(), Error> {
                $wait(self.0.extended_headers()) $($await)*
            }

            /// Lists the meta contexts of an export that match the queries; all without a query.
            ///
            /// # Errors
            ///
            /// When the server refuses, or the connection fails.
            pub $($async)? fn list_meta_context(
                &mut self,
                export: &ExportName,
                queries: &[ContextName],
            ) -> Result<Vec<MetaContextEntry>, Error> {
                $wait(self.0.list_meta_context(export, queries)) $($await)*
            }

            /// Selects the meta contexts that block status is to report of an export.
            ///
            /// # Errors
            ///
            /// When no structured replies were agreed on, the server refuses, or the connection
            /// fails.
            pub $($async)? fn set_meta_context(
                &mut self,
                export: &ExportName,
                queries: &[ContextName],
            ) -> Result<Vec<Context>, Error> {
                $wait(self.0.set_meta_context(export, queries)) $($await)*
            }

            /// Enters an export.
            ///
            /// # Errors
            ///
            /// When the connection fails. A refusal by the server is an [outcome](StepOutcome),
            /// with the negotiation to go on with.
            pub $($async)? fn go(self, request: Go) -> Result<StepOutcome<Client, Self>, Error> {
                let outcome = $wait(self.0.go(request)) $($await)*?;
                Ok(outcome.map(Client::from, Self))
            }

            /// Enters an export by the option that servers without `NBD_OPT_GO` know.
            ///
            /// # Errors
            ///
            /// When extended headers were agreed on; or when the connection fails, which is how a
            /// server refuses this option.
            pub $($async)? fn export_name(self, name: &ExportName) -> Result<Client, Error> {
                $wait(self.0.export_name(name)) $($await)*.map(Client::from)
            }

            /// Ends the session as the protocol asks for, and waits a short while for the server to
            /// answer or to close.
            pub $($async)? fn abort(self) {
                $wait(self.0.abort()) $($await)*;
            }
        }

        impl Negotiation<Plain> {
            /// Starts TLS, by [`ConnectOptions::tls`]. Nothing that was agreed on before holds
            /// inside it.
            ///
            /// # Errors
            ///
            /// When the TLS handshake or the connection fails. A refusal by the server is an
            /// [outcome](StepOutcome), with the negotiation to go on with in the clear.
            ///
            /// [`ConnectOptions::tls`]: crate::ConnectOptions
            pub $($async)? fn start_tls(self) -> Result<TlsOutcome, Error> {
                let outcome = $wait(self.0.start_tls()) $($await)*?;
                Ok(outcome.map(Negotiation, Self))
            }
        }
    };
}
