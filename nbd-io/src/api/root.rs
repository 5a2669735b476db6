//! The root of each driver crate.

/// Defines all that the drivers' crates have in common: what they re-export, their modules, and the
/// types of the other macros. What is left for a crate is its runtime, `Client`, `Listener`,
/// `Cursor` and streams.
#[doc(hidden)]
#[macro_export]
macro_rules! driver_root {
    (
        $(#[$about_options:meta])*
        ConnectOptions: $driver:ident,
        $(#[$about_server:meta])*
        Server: $runtime:ty,
        $(#[$about_connect:meta])*
        connect: [$($async:tt)?] $wait:path, [$($await:tt)*],
        serve: $serve:path,
        exports: { $($more_exports:item)* },
        examples: $name:literal, $begin:literal, $dot_await:literal, $end:literal,
    ) => {
        #[doc(inline)]
        pub use $crate::client::{
            ClientEvent, ConnectionState, Error, Lost, Reconnect, StatusRun, TlsPolicy,
        };
        #[doc(inline)]
        pub use $crate::nbd_proto::{
            BlockSizes, Command, CommandFlags, ContextName, Errno, ExportInfo, ExportName, HeaderStyle,
            Misuse, Uri,
            client::{Context, ContextExtents, Limits, Tolerance},
            meta,
        };
        #[cfg(feature = "tls-base")]
        #[doc(inline)]
        pub use $crate::tls::{ClientTls, NoPin, PeerNames, Pin, ServerTls, TlsError};
        #[doc(inline)]
        pub use $crate::transport::TlsSession;

        $crate::driver_connect_options! {
            $(#[$about_options])*
            driver: $driver,
            waiting: [$($async)?] $wait, [$($await)*],
            examples: $begin, $dot_await, $end,
        }

        $crate::driver_server! {
            $(#[$about_server])*
            runtime: $runtime,
            waiting: [$($async)?] $serve, [$($await)*],
            examples: $begin, $dot_await, $end,
        }

        /// Connects to what a URI names and enters its export, with [default
        /// options](ConnectOptions::new).
        ///
        /// ```no_run
        #[doc = $begin]
        #[doc = concat!("let disk = connect(\"nbd://localhost/disk\")", $dot_await, "?;")]
        #[doc = $end]
        /// ```
        ///
        /// # Errors
        ///
        /// When the URI is wrong, the server cannot be reached, or the export cannot be entered.
        $(#[$about_connect])*
        pub $($async)? fn connect(uri: &str) -> Result<Client, Error> {
            ConnectOptions::new().connect(uri) $($await)*
        }

        /// Events of a [`Server`](crate::Server), who its clients are, and how it is stopped.
        pub mod server {
            #[doc(inline)]
            pub use $crate::nbd_proto::server::Limits;
            #[doc(inline)]
            pub use $crate::server::{
                ClientIdentity, CloseReason, Event, Outcome, Peer, Rate, Stopper,
            };
        }

        /// Storage for a [`Server`](crate::Server) to serve: disks in files and in memory, wrappers
        /// around other exports, and the traits [`Export`](exports::Export) and [`Exports`](exports::Exports) for anything else that a
        /// program has.
        ///
        /// ```
        #[doc = concat!("use ", $name, "::{Server, exports::{Export, Failure}};")]
        /// use std::sync::Arc;
        ///
        /// /// A disk of which every byte is 42.
        /// struct Answer;
        ///
        /// impl Export for Answer {
        ///     fn size(&self) -> u64 {
        ///         1 << 20
        ///     }
        ///
        ///     fn read(&self, _offset: u64, buf: &mut [u8]) -> Result<(), Failure> {
        ///         buf.fill(42);
        ///         Ok(())
        ///     }
        /// }
        ///
        /// let server = Server::single(Arc::new(Answer));
        /// ```
        pub mod exports {
            $($more_exports)*
            #[doc(inline)]
            pub use $crate::{
                Content, Directory, Export, Exports, ExportsByName, Fault, Faults, Faulty, File,
                Listing, Memory, MetaContext, NamedExports, Offer, Overlay, OverlayError, ReadOnly,
                Slice, SliceError, Unavailable, ZeroMode, export_info, failure, fast_zero_failure,
                forward_export, reportable,
            };
            #[doc(inline)]
            pub use $crate::nbd_proto::{
                BlockSizes, Errno, ExportInfo, ExportName, Failure, TransmissionFlags, meta,
            };
        }

        /// Negotiation option by option, for programs that look around before they enter an export.
        /// It begins with [`ConnectOptions::start`](crate::ConnectOptions::start) or
        /// [`start_secure`](crate::ConnectOptions::start_secure).
        pub mod negotiation {
            $crate::driver_negotiation! {
                driver: $driver,
                waiting: [$($async)?] $wait, [$($await)*],
                examples: $begin, $dot_await, $end,
            }
        }
    };
}
