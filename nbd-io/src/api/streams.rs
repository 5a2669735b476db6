//! The part of a driver that only those for tasks have: extents as a stream, and streams of the
//! program's.

/// Defines the `Extents` of a driver for tasks, and the methods that only such a driver has.
#[doc(hidden)]
#[macro_export]
macro_rules! driver_streams {
    (
        runtime: $runtime:ty,
        examples: $begin:literal, $dot_await:literal, $end:literal,
    ) => {
        /// The extents of a range, as a stream that asks the server as often as it takes.
        ///
        /// ```no_run
        #[doc = $begin]
        /// let mut extents = disk.extents(0..disk.size());
        /// while let Some(run) = extents.next().await {
        ///     let run = run?;
        ///     println!("{} bytes at {}", run.len, run.offset);
        /// }
        #[doc = $end]
        /// ```
        ///
        /// The items are runs on which no context changes, in order and without gaps. They are
        /// inside the range. An error ends the stream.
        ///
        /// Neighbours that say the same are merged, as far as 64 answers of the server go and as
        /// they come within a second: a server may answer for very little each time, and an item
        /// must not take for ever. An item of which nothing is known yet takes as long as a request
        /// may.
        ///
        /// Spec: [Metadata
        /// querying](https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md#metadata-querying).
        #[derive(Debug)]
        pub struct Extents($crate::client::tasks::Extents<$runtime>);

        impl From<$crate::client::tasks::Extents<$runtime>> for Extents {
            fn from(extents: $crate::client::tasks::Extents<$runtime>) -> Self {
                Self(extents)
            }
        }

        impl Extents {
            /// The next run; `None` at the end.
            ///
            /// ```no_run
            #[doc = $begin]
            /// let first = disk.extents(0..disk.size()).next().await;
            #[doc = $end]
            /// ```
            ///
            /// # Errors
            ///
            /// When the server cannot be asked or fails to answer.
            ///
            /// # Cancel safety
            ///
            /// A future that is dropped loses nothing: the next one goes on.
            pub async fn next(
                &mut self,
            ) -> Option<Result<$crate::client::StatusRun, $crate::client::Error>> {
                self.0.next().await
            }
        }

        impl $crate::futures_core::Stream for Extents {
            type Item = Result<$crate::client::StatusRun, $crate::client::Error>;

            fn poll_next(
                self: std::pin::Pin<&mut Self>,
                cx: &mut std::task::Context<'_>,
            ) -> std::task::Poll<Option<Self::Item>> {
                std::pin::Pin::new(&mut self.get_mut().0).poll_next(cx)
            }
        }

        impl ConnectOptions {
            /// Like [`new`](Self::new), on this runtime.
            ///
            /// ```no_run
            #[doc = $begin]
            /// let disk = ConnectOptions::with_runtime(runtime).connect("nbd://localhost").await?;
            #[doc = $end]
            /// ```
            #[must_use]
            pub fn with_runtime(runtime: $runtime) -> Self {
                $crate::client::ConnectOptions::with_runtime(runtime).into()
            }

            /// The runtime that connections are made on.
            ///
            /// ```no_run
            #[doc = $begin]
            /// println!("{:?}", options.runtime());
            #[doc = $end]
            /// ```
            #[must_use]
            pub const fn runtime(&self) -> &$runtime {
                self.0.runtime()
            }

            /// Enters the export over a stream that the program brings: a [`Socket`], or a
            /// [`Stream`] around any other. `host` is the name that a certificate is checked
            /// against unless `ClientTls` has another one.
            ///
            /// ```no_run
            #[doc = $begin]
            /// let socket = Socket::from_std(std::net::TcpStream::connect("localhost:10809")?)?;
            /// let disk = options.connect_over(socket, Some("localhost")).await?;
            #[doc = $end]
            /// ```
            ///
            /// # Errors
            ///
            /// When the export cannot be entered; or with [`reconnect`](Self::reconnect) or more
            /// than one of [`connections`](Self::connections), because there is no address to make
            /// another one to.
            pub async fn connect_over<T: $crate::transport::Transport + Send + 'static>(
                &self,
                stream: T,
                host: Option<&str>,
            ) -> Result<Client, $crate::client::Error> {
                Box::pin(self.0.connect_over(stream, host))
                    .await
                    .map(Client::from)
            }

            /// Enters the export over streams that a function of the program's makes, such as
            /// tunnels: one for each of the [`connections`](Self::connections), and others for lost
            /// ones with [`reconnect`](Self::reconnect). `host` is as for
            /// [`connect_over`](Self::connect_over).
            ///
            /// ```no_run
            #[doc = $begin]
            /// let through_tunnel = || async {
            ///     // Here the program would open its tunnel.
            ///     Socket::from_std(std::net::TcpStream::connect("localhost:10809")?)
            /// };
            /// let options = ConnectOptions::new().connections(2).reconnect(Some(Reconnect::new()));
            /// let disk = options.connect_with(through_tunnel, Some("localhost")).await?;
            #[doc = $end]
            /// ```
            ///
            /// A future of the function's that takes longer than the
            /// [`connect_timeout`](Self::connect_timeout) is dropped.
            ///
            /// # Errors
            ///
            /// When the function fails or takes too long, or the export cannot be entered.
            pub async fn connect_with<F, T>(
                &self,
                dial: impl Fn() -> F + Send + Sync + 'static,
                host: Option<&str>,
            ) -> Result<Client, $crate::client::Error>
            where
                F: Future<Output = std::io::Result<T>> + Send + 'static,
                T: $crate::transport::Transport + Send + 'static,
            {
                Box::pin(self.0.connect_with(dial, host))
                    .await
                    .map(Client::from)
            }
        }

        impl Server {
            /// Serves one client over a stream that the program brings: a [`Socket`], or a
            /// [`Stream`] around any other.
            ///
            /// ```no_run
            #[doc = $begin]
            /// let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
            /// let why = server.serve_over(Socket::from_std(theirs)?).await?;
            /// println!("it ended: {why:?}");
            #[doc = $end]
            /// ```
            ///
            /// # Errors
            ///
            /// When the server has as many connections as it may, is stopping, or the stream cannot
            /// be used. The end of the connection, of any kind, is no error of the server's.
            ///
            /// # Cancel safety
            ///
            /// A future that is dropped closes the connection.
            pub async fn serve_over<T: $crate::transport::Transport + Send>(
                &self,
                stream: T,
            ) -> std::io::Result<$crate::server::CloseReason> {
                Box::pin(self.0.serve_over(stream)).await
            }
        }
    };
}
