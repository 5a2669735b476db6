//! The root of each driver crate.

/// Defines the common part of the drivers' crates: their re-exports, their modules, and the types
/// of the other macros. A crate adds its runtime, `Client`, `Listener`, `Cursor` and streams.
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

        /// Connects to the server of a URI and enters its export, with [default
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

        /// Events of a [`Server`](crate::Server), its clients, and the way to stop it.
        pub mod server {
            #[doc(inline)]
            pub use $crate::nbd_proto::server::Limits;
            #[doc(inline)]
            pub use $crate::server::{
                ClientIdentity, CloseReason, Event, Outcome, Peer, Rate, Stopper,
            };
        }

        /// Storage for a [`Server`](crate::Server) to serve: disks in files and in memory, wrappers
        /// around other exports, and the traits [`Export`](exports::Export) and
        /// [`Exports`](exports::Exports) for anything else that a program has.
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
                AnyExport, AsyncExport, AsyncExports, Blocking, Content, Directory, Export, Exports,
                ExportsByName, Fault, Faults, Faulty, File, Listing, Memory, MetaContext,
                NamedExports, Offer, Overlay, OverlayError, Piece, ReadData, ReadOnly, Slice,
                SliceError, Unavailable, Unblock, ZeroMode, export_info, failure, fast_zero_failure,
                forward_async_export, forward_export, reportable,
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
