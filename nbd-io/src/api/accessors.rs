//! The results of negotiation, in the same methods on every `Client`.

/// Defines the methods of a driver's `Client` that return the results of negotiation. It has a
/// `negotiated`.
#[doc(hidden)]
#[macro_export]
macro_rules! driver_accessors {
    (examples: $begin:literal, $dot_await:literal, $end:literal,) => {
        impl Client {
            /// The export as the server described it.
            ///
            /// ```no_run
            #[doc = $begin]
            /// println!("read only: {}", disk.export().is_read_only());
            #[doc = $end]
            /// ```
            #[must_use]
            pub fn export(&self) -> &$crate::nbd_proto::ExportInfo {
                &self.negotiated().export
            }

            /// Number of bytes that can be read and written: the export's size, without an
            /// incomplete block of the minimum size at its end. Servers should not have one, but if
            /// this is less than [`export().size`](crate::ExportInfo::size), the rest is out of
            /// every client's reach.
            ///
            /// ```no_run
            #[doc = $begin]
            /// println!("{} bytes", disk.size());
            #[doc = $end]
            /// ```
            #[must_use]
            pub fn size(&self) -> u64 {
                self.negotiated().size()
            }

            /// The headers that the connections use.
            ///
            /// ```no_run
            #[doc = $begin]
            /// println!("extended headers: {}", disk.mode() == HeaderStyle::Extended);
            #[doc = $end]
            /// ```
            #[must_use]
            pub fn mode(&self) -> $crate::nbd_proto::HeaderStyle {
                self.negotiated().mode
            }

            /// Whether the connections are encrypted.
            ///
            /// ```no_run
            #[doc = $begin]
            /// assert!(disk.is_encrypted());
            #[doc = $end]
            /// ```
            #[must_use]
            pub fn is_encrypted(&self) -> bool {
                self.negotiated().encrypted
            }

            /// The TLS session of the first connection, with the server's certificates; `None`
            /// without TLS.
            ///
            /// ```no_run
            #[doc = $begin]
            /// if let Some(session) = disk.tls_session() {
            ///     println!("{session:?}");
            /// }
            #[doc = $end]
            /// ```
            #[must_use]
            pub fn tls_session(&self) -> Option<&$crate::transport::TlsSession> {
                self.negotiated().tls.as_deref()
            }

            /// The meta contexts that were selected.
            ///
            /// ```no_run
            #[doc = $begin]
            /// for context in disk.contexts() {
            ///     println!("{:?}", context.name);
            /// }
            #[doc = $end]
            /// ```
            #[must_use]
            pub fn contexts(&self) -> &[$crate::nbd_proto::client::Context] {
                &self.negotiated().contexts
            }

            /// Whether a meta context was selected.
            ///
            /// ```no_run
            #[doc = $begin]
            /// let bitmap = ContextName::dirty_bitmap("backup-0")?;
            #[doc = concat!("let disk = options.context(bitmap.clone()).connect(\"nbd://localhost/disk\")", $dot_await, "?;")]
            /// if !disk.has_context(&bitmap) {
            ///     println!("everything has to be copied");
            /// }
            #[doc = $end]
            /// ```
            #[must_use]
            pub fn has_context(&self, name: &$crate::nbd_proto::ContextName) -> bool {
                self.context_id(name).is_some()
            }

            /// The number of a meta context, which names it in
            /// [`ContextExtents`](crate::ContextExtents) and in
            /// [`block_status_of`](Self::block_status_of); `None` if it was not selected.
            ///
            /// ```no_run
            #[doc = $begin]
            /// let depth = ContextName::allocation_depth();
            #[doc = concat!("let disk = options.require_context(depth.clone()).connect(\"nbd://localhost/disk\")", $dot_await, "?;")]
            /// let id = disk.context_id(&depth).ok_or("it was required")?;
            #[doc = concat!("let answers = disk.block_status_of(&[id], 0, 1 << 30, CommandFlags::NONE)", $dot_await, "?;")]
            #[doc = $end]
            /// ```
            #[must_use]
            pub fn context_id(&self, name: &$crate::nbd_proto::ContextName) -> Option<u32> {
                self.negotiated().context_id(name)
            }

            /// The block sizes that hold, in bytes; the usual ones if the server sent none.
            ///
            /// ```no_run
            #[doc = $begin]
            /// println!("{} bytes at best", disk.block_sizes().preferred());
            #[doc = $end]
            /// ```
            #[must_use]
            pub fn block_sizes(&self) -> $crate::nbd_proto::BlockSizes {
                self.negotiated().blocks
            }
        }
    };
}
