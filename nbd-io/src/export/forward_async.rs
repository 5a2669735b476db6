//! Wrappers of asynchronous exports.

use super::AsyncExport;
use std::sync::Arc;

/// Forwards the methods of [`AsyncExport`](crate::AsyncExport) to another one, for a wrapper that
/// changes some of them, as [`forward_export!`](crate::forward_export) does for exports.
///
/// ```
/// use bytes::Bytes;
/// use nbd_io::{AsyncExport, forward_async_export};
/// use nbd_proto::{Errno, Failure};
///
/// /// Another export that takes no write behind its first MiB.
/// struct Guarded<E>(E);
///
/// impl<E: AsyncExport> AsyncExport for Guarded<E> {
///     forward_async_export!(|this| &this.0, except write);
///
///     async fn write(&self, offset: u64, data: Bytes, fua: bool) -> Result<(), Failure> {
///         if offset + data.len() as u64 > 1 << 20 {
///             return Err(Errno::Perm.into());
///         }
///         self.0.write(offset, data, fua).await
///     }
/// }
/// ```
#[macro_export]
macro_rules! forward_async_export {
    (|$this:ident| $export:expr $(, except $($own:ident),+ $(,)?)?) => {
        $($($crate::forward_export!(@$own [$own]);)+)?
        $crate::forward_export!(@size [$($($own)+)?]
            fn size(&self) -> u64 {
                let $this = self;
                $crate::AsyncExport::size($export)
            }
        );
        $crate::forward_export!(@refresh [$($($own)+)?]
            fn refresh(
                &self,
            ) -> impl ::core::future::Future<Output = ()> + ::core::marker::Send {
                let $this = self;
                $crate::AsyncExport::refresh($export)
            }
        );
        $crate::forward_export!(@read [$($($own)+)?]
            fn read(
                &self,
                offset: u64,
                len: usize,
            ) -> impl ::core::future::Future<
                Output = ::core::result::Result<$crate::ReadData, $crate::nbd_proto::Failure>,
            > + ::core::marker::Send {
                let $this = self;
                $crate::AsyncExport::read($export, offset, len)
            }
        );
        $crate::forward_export!(@read_now [$($($own)+)?]
            fn read_now(
                &self,
                offset: u64,
                len: usize,
            ) -> ::core::option::Option<
                ::core::result::Result<$crate::ReadData, $crate::nbd_proto::Failure>,
            > {
                let $this = self;
                $crate::AsyncExport::read_now($export, offset, len)
            }
        );
        $crate::forward_export!(@flags [$($($own)+)?]
            fn flags(&self) -> $crate::nbd_proto::TransmissionFlags {
                let $this = self;
                $crate::AsyncExport::flags($export)
            }
        );
        $crate::forward_export!(@block_sizes [$($($own)+)?]
            fn block_sizes(&self) -> $crate::nbd_proto::BlockSizes {
                let $this = self;
                $crate::AsyncExport::block_sizes($export)
            }
        );
        $crate::forward_export!(@description [$($($own)+)?]
            fn description(&self) -> &str {
                let $this = self;
                $crate::AsyncExport::description($export)
            }
        );
        $crate::forward_export!(@write [$($($own)+)?]
            fn write(
                &self,
                offset: u64,
                data: $crate::bytes::Bytes,
                fua: bool,
            ) -> impl ::core::future::Future<
                Output = ::core::result::Result<(), $crate::nbd_proto::Failure>,
            > + ::core::marker::Send {
                let $this = self;
                $crate::AsyncExport::write($export, offset, data, fua)
            }
        );
        $crate::forward_export!(@write_zeroes [$($($own)+)?]
            fn write_zeroes(
                &self,
                offset: u64,
                len: u64,
                mode: $crate::ZeroMode,
            ) -> impl ::core::future::Future<
                Output = ::core::result::Result<(), $crate::nbd_proto::Failure>,
            > + ::core::marker::Send {
                let $this = self;
                $crate::AsyncExport::write_zeroes($export, offset, len, mode)
            }
        );
        $crate::forward_export!(@trim [$($($own)+)?]
            fn trim(
                &self,
                offset: u64,
                len: u64,
                fua: bool,
            ) -> impl ::core::future::Future<
                Output = ::core::result::Result<(), $crate::nbd_proto::Failure>,
            > + ::core::marker::Send {
                let $this = self;
                $crate::AsyncExport::trim($export, offset, len, fua)
            }
        );
        $crate::forward_export!(@cache [$($($own)+)?]
            fn cache(
                &self,
                offset: u64,
                len: u64,
            ) -> impl ::core::future::Future<
                Output = ::core::result::Result<(), $crate::nbd_proto::Failure>,
            > + ::core::marker::Send {
                let $this = self;
                $crate::AsyncExport::cache($export, offset, len)
            }
        );
        $crate::forward_export!(@flush [$($($own)+)?]
            fn flush(
                &self,
            ) -> impl ::core::future::Future<
                Output = ::core::result::Result<(), $crate::nbd_proto::Failure>,
            > + ::core::marker::Send {
                let $this = self;
                $crate::AsyncExport::flush($export)
            }
        );
        $crate::forward_export!(@allocation [$($($own)+)?]
            fn allocation(
                &self,
                offset: u64,
                len: u64,
            ) -> impl ::core::future::Future<
                Output = ::core::result::Result<
                    ::std::vec::Vec<$crate::nbd_proto::meta::Extent>,
                    $crate::nbd_proto::Failure,
                >,
            > + ::core::marker::Send {
                let $this = self;
                $crate::AsyncExport::allocation($export, offset, len)
            }
        );
        $crate::forward_export!(@contexts [$($($own)+)?]
            fn contexts(&self) -> ::std::vec::Vec<$crate::MetaContext> {
                let $this = self;
                $crate::AsyncExport::contexts($export)
            }
        );
        $crate::forward_export!(@block_status [$($($own)+)?]
            fn block_status(
                &self,
                context: &$crate::nbd_proto::ContextName,
                offset: u64,
                len: u64,
            ) -> impl ::core::future::Future<
                Output = ::core::result::Result<
                    ::std::vec::Vec<$crate::nbd_proto::meta::Extent>,
                    $crate::nbd_proto::Failure,
                >,
            > + ::core::marker::Send {
                let $this = self;
                $crate::AsyncExport::block_status($export, context, offset, len)
            }
        );
    };
}

impl<E: AsyncExport> AsyncExport for Box<E> {
    forward_async_export!(|this| &**this);
}

impl<E: AsyncExport> AsyncExport for Arc<E> {
    forward_async_export!(|this| &**this);
}
