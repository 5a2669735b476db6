//! The `Client` of drivers for tasks.

/// Defines the `Client` of a driver for tasks.
#[doc(hidden)]
#[macro_export]
macro_rules! driver_client {
    (
        $(#[$about:meta])*
        runtime: $runtime:ty,
        examples: $begin:literal, $dot_await:literal, $end:literal,
    ) => {
        $(#[$about])*
        ///
        /// All methods take `&self`, and clones are cheap and share the connections: any number of
        /// tasks can have requests in flight at once, and replies come in any order. A task that
        /// waits for its reply moves the connection on for all of them.
        ///
        /// Requests may have any length. A request longer than the server allows is split, and its
        /// pieces are in flight together. If one of them fails, the others may or may not have been
        /// carried out.
        ///
        /// Requests that overlap and are in flight at once are carried out in any order. After the
        /// connection is over, every call returns the reason, unless there is a policy by which to
        /// make a new one: see [`Reconnect`].
        ///
        /// Dropping the last clone sends `NBD_CMD_DISC` in the background; see
        /// [`disconnect`](Client::disconnect). If the runtime ends before that, the connection is
        /// just closed.
        ///
        /// Spec: [Request
        /// types](https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md#request-types).
        ///
        /// # Cancel safety
        ///
        /// Every future can be dropped at any time: the connection and all other requests go on.
        /// Whether a request whose future was dropped is carried out is not known, and it may be
        /// carried out later. After a write was dropped, the contents of its place are therefore
        /// only known when another write there has been answered. If the server works on several
        /// requests of a client at once, the dropped one may come even after that, until
        /// [`disconnect`](Client::disconnect).
        #[derive(Clone, Debug)]
        pub struct Client($crate::client::tasks::Client<$runtime>);

        impl From<$crate::client::tasks::Client<$runtime>> for Client {
            fn from(client: $crate::client::tasks::Client<$runtime>) -> Self {
                Self(client)
            }
        }

        impl From<Client> for $crate::client::tasks::Client<$runtime> {
            fn from(client: Client) -> Self {
                client.0
            }
        }

        $crate::driver_accessors! { examples: $begin, $dot_await, $end, }

        impl Client {
            fn negotiated(&self) -> &$crate::client::Negotiated {
                self.0.negotiated()
            }

            /// Number of connections at present.
            ///
            /// ```no_run
            #[doc = $begin]
            /// println!("{} connections", disk.connections());
            #[doc = $end]
            /// ```
            #[must_use]
            pub fn connections(&self) -> usize {
                self.0.connections()
            }

            /// State of the connections.
            ///
            /// ```no_run
            #[doc = $begin]
            /// if let ConnectionState::Reconnecting { attempt, .. } = disk.state() {
            ///     println!("attempt {attempt}");
            /// }
            #[doc = $end]
            /// ```
            #[must_use]
            pub fn state(&self) -> $crate::client::ConnectionState {
                self.0.state()
            }

            /// Waits until the state is another one than `known`. States between may be left out.
            /// There is no other one after [`ConnectionState::Over`], so that this then waits for
            /// ever.
            ///
            /// ```no_run
            #[doc = $begin]
            /// let state = disk.state();
            /// println!("{:?}", disk.state_changed(&state).await);
            #[doc = $end]
            /// ```
            ///
            /// # Cancel safety
            ///
            /// A future that is dropped loses nothing.
            pub async fn state_changed(
                &self,
                known: &$crate::client::ConnectionState,
            ) -> $crate::client::ConnectionState {
                self.0.state_changed(known).await
            }

            /// Reads `len` bytes. Where the server has a minimum block size, the rest of the first
            /// and the last block is read too and thrown away.
            ///
            /// ```no_run
            #[doc = $begin]
            /// let data = disk.read(0, 4096).await?;
            #[doc = $end]
            /// ```
            ///
            /// # Errors
            ///
            /// When the range is not inside the export, the server fails the command, or the
            /// connection is over.
            pub fn read(
                &self,
                offset: u64,
                len: usize,
            ) -> impl Future<Output = Result<$crate::bytes::Bytes, $crate::client::Error>> + Send {
                self.0.read(offset, len)
            }

            /// Fills a buffer, of the length that it has, and gives it back. With a buffer that is
            /// used again and again no memory is allocated.
            ///
            /// ```no_run
            #[doc = $begin]
            /// use bytes::BytesMut;
            ///
            /// let mut buffer = BytesMut::zeroed(4096);
            /// for block in 0..16 {
            ///     buffer = disk.read_into(buffer, block * 4096).await?;
            ///     println!("{:?}", &buffer[..16]);
            /// }
            #[doc = $end]
            /// ```
            ///
            /// # Errors
            ///
            /// Like [`read`](Client::read). The [`ReadIntoError`] has the buffer, and `?` makes an
            /// [`Error`] of it.
            pub fn read_into(
                &self,
                buffer: $crate::bytes::BytesMut,
                offset: u64,
            ) -> impl Future<
                Output = Result<$crate::bytes::BytesMut, $crate::client::tasks::ReadIntoError>,
            > + Send {
                self.0.read_into(buffer, offset)
            }

            /// Reads in one request with these flags; nothing is split or aligned. Flags:
            /// [`CommandFlags::DF`].
            ///
            /// ```no_run
            #[doc = $begin]
            /// let data = disk.read_with(0, 4096, CommandFlags::DF).await?;
            #[doc = $end]
            /// ```
            ///
            /// # Errors
            ///
            /// When the request makes no sense here, the server fails it, or the connection is
            /// over.
            pub fn read_with(
                &self,
                offset: u64,
                len: usize,
                flags: $crate::nbd_proto::CommandFlags,
            ) -> impl Future<Output = Result<$crate::bytes::Bytes, $crate::client::Error>> + Send {
                self.0.read_with(offset, len, flags)
            }

            /// Writes. The data is on stable storage after a [`flush`](Client::flush).
            ///
            /// ```no_run
            #[doc = $begin]
            /// disk.write(&b"hello"[..], 4096).await?;
            /// disk.write(vec![0; 1 << 20], 8192).await?;
            #[doc = $end]
            /// ```
            ///
            /// Where the server has a minimum block size, a part of a block is written by reading,
            /// changing and writing the block, which this client and its clones keep apart from
            /// their other writes, but other clients cannot know of.
            ///
            /// The data's owner, if it is one of
            /// [`Bytes::from_owner`](crate::bytes::Bytes::from_owner), is dropped while the
            /// connection is locked, by the task that sends it: its `Drop` must not use the client
            /// or wait for a task that does.
            ///
            /// # Errors
            ///
            /// When the range is not inside the export, the server fails the command, or the
            /// connection is over. It is not known then which bytes were written.
            pub fn write<D: Into<$crate::bytes::Bytes>>(
                &self,
                data: D,
                offset: u64,
            ) -> impl Future<Output = Result<(), $crate::client::Error>> + Send + use<'_, D> {
                self.0.write(data.into(), offset)
            }

            /// Writes with these flags: [`CommandFlags::FUA`] to have the data on stable storage
            /// before this is done.
            ///
            /// ```no_run
            #[doc = $begin]
            /// disk.write_with(&b"hello"[..], 4096, CommandFlags::FUA).await?;
            #[doc = $end]
            /// ```
            ///
            /// # Errors
            ///
            /// Like [`write`](Client::write), and when the server does not offer the flag.
            pub fn write_with<D: Into<$crate::bytes::Bytes>>(
                &self,
                data: D,
                offset: u64,
                flags: $crate::nbd_proto::CommandFlags,
            ) -> impl Future<Output = Result<(), $crate::client::Error>> + Send + use<'_, D> {
                self.0.write_with(data.into(), offset, flags)
            }

            /// Puts everything that was answered before this call on stable storage, over whichever
            /// connection it was written.
            ///
            /// ```no_run
            #[doc = $begin]
            /// disk.write(&b"hello"[..], 4096).await?;
            /// disk.flush().await?;
            #[doc = $end]
            /// ```
            ///
            /// Without [`ExportInfo::can_flush`] the server cannot be asked.
            ///
            /// With [`Reconnect`], writes may be lost before they are flushed. This is
            /// [`Error::Unflushed`] then, and so is every later flush of this handle and its
            /// clones, as a file whose `fsync` has failed cannot promise anything any more. Handles
            /// of a [new epoch](Client::new_epoch) can.
            ///
            /// # Errors
            ///
            /// When the server does not offer it or fails it, the connection is over, or writes
            /// before this one may have been lost.
            pub fn flush(
                &self,
            ) -> impl Future<Output = Result<(), $crate::client::Error>> + Send {
                self.0.flush()
            }

            /// A handle to the same client that leaves behind writes that were lost: its
            /// [`flush`](Client::flush) covers writes that are begun from now on. One that is in
            /// flight now may have been carried out in part before the loss. It is for a program
            /// that has met [`Error::Unflushed`] and writes again.
            ///
            /// ```no_run
            #[doc = $begin]
            /// let mut disk = disk;
            /// loop {
            ///     disk.write(&b"hello"[..], 4096).await?;
            ///     match disk.flush().await {
            ///         Err(Error::Unflushed) => disk = disk.new_epoch(),
            ///         flushed => break flushed?,
            ///     }
            /// }
            #[doc = $end]
            /// ```
            #[must_use]
            pub fn new_epoch(&self) -> Self {
                Self(self.0.new_epoch())
            }

            /// Says that the contents of a range are not needed any more. Flags:
            /// [`CommandFlags::FUA`].
            ///
            /// ```no_run
            #[doc = $begin]
            /// disk.trim(0, 1 << 20, CommandFlags::NONE).await?;
            #[doc = $end]
            /// ```
            ///
            /// # Errors
            ///
            /// When the range or the flags make no sense here, the server fails the command, or the
            /// connection is over.
            pub fn trim(
                &self,
                offset: u64,
                len: u64,
                flags: $crate::nbd_proto::CommandFlags,
            ) -> impl Future<Output = Result<(), $crate::client::Error>> + Send {
                self.0.trim(offset, len, flags)
            }

            /// Says that a range will be read soon. Neither success nor failure means anything for
            /// later reads.
            ///
            /// ```no_run
            #[doc = $begin]
            /// disk.cache(0, 1 << 20).await?;
            #[doc = $end]
            /// ```
            ///
            /// # Errors
            ///
            /// Like [`trim`](Client::trim).
            pub fn cache(
                &self,
                offset: u64,
                len: u64,
            ) -> impl Future<Output = Result<(), $crate::client::Error>> + Send {
                self.0.cache(offset, len)
            }

            /// Writes zeroes. Flags: [`CommandFlags::FUA`], [`CommandFlags::NO_HOLE`],
            /// [`CommandFlags::FAST_ZERO`].
            ///
            /// ```no_run
            #[doc = $begin]
            /// disk.write_zeroes(0, 1 << 20, CommandFlags::NO_HOLE).await?;
            #[doc = $end]
            /// ```
            ///
            /// # Errors
            ///
            /// Like [`trim`](Client::trim); with `FAST_ZERO`, [`Errno::NotSup`] says that writing
            /// would be no slower.
            pub fn write_zeroes(
                &self,
                offset: u64,
                len: u64,
                flags: $crate::nbd_proto::CommandFlags,
            ) -> impl Future<Output = Result<(), $crate::client::Error>> + Send {
                self.0.write_zeroes(offset, len, flags)
            }

            /// Asks once for the status of a range in the selected meta contexts. The answer may
            /// cover less than the range, differently for each context;
            /// [`extents`](Client::extents) goes on until the end. Flags:
            /// [`CommandFlags::REQ_ONE`].
            ///
            /// ```no_run
            #[doc = $begin]
            /// let disk = options
            ///     .require_context(ContextName::base_allocation())
            ///     .connect("nbd://localhost/disk")
            ///     .await?;
            /// let answers = disk.block_status(0, 1 << 20, CommandFlags::REQ_ONE).await?;
            /// println!("{:?}", answers[0].extents);
            #[doc = $end]
            /// ```
            ///
            /// # Errors
            ///
            /// When no context was selected, the range makes no sense, the server fails the
            /// command, or the connection is over.
            pub async fn block_status(
                &self,
                offset: u64,
                len: u64,
                flags: $crate::nbd_proto::CommandFlags,
            ) -> Result<Vec<$crate::nbd_proto::client::ContextExtents>, $crate::client::Error> {
                self.0.block_status(offset, len, flags).await
            }

            /// Asks once for the status of a range in some of the selected meta contexts.
            ///
            /// ```no_run
            #[doc = $begin]
            /// let ids: Vec<u32> = disk.contexts().iter().map(|context| context.id).collect();
            /// let answers = disk.block_status_of(&ids, 0, 1 << 20, CommandFlags::NONE).await?;
            #[doc = $end]
            /// ```
            ///
            /// # Errors
            ///
            /// Like [`block_status`](Client::block_status), and when the server cannot be asked for
            /// some contexts only or `ids` are not selected ones, once each.
            pub async fn block_status_of(
                &self,
                ids: &[u32],
                offset: u64,
                len: u64,
                flags: $crate::nbd_proto::CommandFlags,
            ) -> Result<Vec<$crate::nbd_proto::client::ContextExtents>, $crate::client::Error> {
                self.0.block_status_of(ids, offset, len, flags).await
            }

            /// Walks the extents of a range to its end, with equal neighbours merged.
            ///
            /// ```no_run
            #[doc = $begin]
            /// let disk = options
            ///     .require_context(ContextName::base_allocation())
            ///     .connect("nbd://localhost/disk")
            ///     .await?;
            /// let mut extents = disk.extents(0..disk.size());
            /// while let Some(run) = extents.next().await {
            ///     println!("{:?}", run?);
            /// }
            #[doc = $end]
            /// ```
            #[must_use]
            pub fn extents(&self, range: std::ops::Range<u64>) -> Extents {
                Extents::from(self.0.extents(range))
            }

            /// Gives up all connections and makes new ones, without the pause that the policy has
            /// next. For a program that knows better: the network has changed, or the server is no
            /// longer the right one. Requests in flight are made again on the new connections.
            /// Nothing is waited for.
            ///
            /// ```no_run
            #[doc = $begin]
            /// disk.reconnect_now()?;
            #[doc = $end]
            /// ```
            ///
            /// # Errors
            ///
            /// When there is no policy to [`reconnect`](ConnectOptions::reconnect), or the client
            /// is over.
            pub fn reconnect_now(&self) -> Result<(), $crate::client::Error> {
                self.0.reconnect_now()
            }

            /// Ends the session: waits for requests in flight, sends `NBD_CMD_DISC` and waits for
            /// the server to close, all together up to 5 s. Clones cannot be used afterwards.
            ///
            /// ```no_run
            #[doc = $begin]
            /// disk.disconnect().await?;
            #[doc = $end]
            /// ```
            ///
            /// # Errors
            ///
            /// When a connection was over before, there was none at that time, or this was called
            /// before.
            ///
            /// # Cancel safety
            ///
            /// A future that is dropped leaves the rest to the background.
            pub async fn disconnect(&self) -> Result<(), $crate::client::Error> {
                self.0.disconnect().await
            }

            /// Whether there is no connection any more, and none will be made.
            ///
            /// ```no_run
            #[doc = $begin]
            /// if disk.is_lost() {
            ///     println!("{:?}", disk.state());
            /// }
            #[doc = $end]
            /// ```
            #[must_use]
            pub fn is_lost(&self) -> bool {
                self.0.is_lost()
            }
        }
    };
}
