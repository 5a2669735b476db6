//! Wrappers: exports that change some of another's methods, and forward the rest.

use super::Export;
use std::sync::Arc;

/// Forwards the methods of [`Export`](crate::Export) to another export, for a wrapper that changes
/// some of them.
///
/// It stands inside the `impl` of the wrapper, which then writes only the methods that it changes:
///
/// ```
/// use nbd_io::{Export, Memory, forward_export};
/// use nbd_proto::Failure;
/// use std::{sync::Arc, sync::atomic::{AtomicU64, Ordering}};
///
/// /// Counts the bytes that are written.
/// struct Counted {
///     export: Arc<dyn Export>,
///     written: AtomicU64,
/// }
///
/// impl Export for Counted {
///     forward_export!(|this| &this.export, except write);
///
///     fn write(&self, offset: u64, data: &[u8], fua: bool) -> Result<(), Failure> {
///         self.written.fetch_add(data.len() as u64, Ordering::Relaxed);
///         self.export.write(offset, data, fua)
///     }
/// }
///
/// let disk = Counted { export: Arc::new(Memory::new(1 << 20)), written: AtomicU64::new(0) };
/// disk.write(4096, b"hello", false)?;
/// assert_eq!((disk.size(), disk.written.into_inner()), (1 << 20, 5));
/// # Ok::<(), Failure>(())
/// ```
///
/// `this` is the wrapper, and the expression behind it a reference to anything that is an
/// [`Export`](crate::Export). Behind `except` stand the methods that the wrapper has itself, or
/// that are to be as the trait provides them. A method that is both forwarded and written does not
/// compile:
///
/// ```compile_fail,E0201
/// # use nbd_io::{Export, Memory, forward_export};
/// # struct Wrapper(Memory);
/// impl Export for Wrapper {
///     forward_export!(|this| &this.0);
///
///     fn size(&self) -> u64 {
///         512
///     }
/// }
/// ```
///
/// Neither does a method that there is not:
///
/// ```compile_fail
/// # use nbd_io::{Export, Memory, forward_export};
/// # struct Wrapper(Memory);
/// impl Export for Wrapper {
///     forward_export!(|this| &this.0, except wirte);
/// }
/// ```
///
/// A method that a later version adds to the trait is forwarded until it is named behind `except`. A
/// wrapper that moves offsets or forbids something therefore has to look at new ones.
#[macro_export]
macro_rules! forward_export {
    (|$this:ident| $export:expr $(, except $($own:ident),+ $(,)?)?) => {
        $($($crate::forward_export!(@$own [$own]);)+)?
        $crate::forward_export!(@size [$($($own)+)?]
            fn size(&self) -> u64 {
                let $this = self;
                $crate::Export::size($export)
            }
        );
        $crate::forward_export!(@refresh [$($($own)+)?]
            fn refresh(&self) {
                let $this = self;
                $crate::Export::refresh($export);
            }
        );
        $crate::forward_export!(@read [$($($own)+)?]
            fn read(
                &self,
                offset: u64,
                buf: &mut [u8],
            ) -> ::core::result::Result<(), $crate::nbd_proto::Failure> {
                let $this = self;
                $crate::Export::read($export, offset, buf)
            }
        );
        $crate::forward_export!(@read_unless_zero [$($($own)+)?]
            fn read_unless_zero(
                &self,
                offset: u64,
                buf: &mut [u8],
            ) -> ::core::result::Result<$crate::Content, $crate::nbd_proto::Failure> {
                let $this = self;
                $crate::Export::read_unless_zero($export, offset, buf)
            }
        );
        $crate::forward_export!(@read_now [$($($own)+)?]
            fn read_now(
                &self,
                offset: u64,
                buf: &mut [u8],
            ) -> ::core::option::Option<
                ::core::result::Result<(), $crate::nbd_proto::Failure>,
            > {
                let $this = self;
                $crate::Export::read_now($export, offset, buf)
            }
        );
        $crate::forward_export!(@flags [$($($own)+)?]
            fn flags(&self) -> $crate::nbd_proto::TransmissionFlags {
                let $this = self;
                $crate::Export::flags($export)
            }
        );
        $crate::forward_export!(@block_sizes [$($($own)+)?]
            fn block_sizes(&self) -> $crate::nbd_proto::BlockSizes {
                let $this = self;
                $crate::Export::block_sizes($export)
            }
        );
        $crate::forward_export!(@description [$($($own)+)?]
            fn description(&self) -> &str {
                let $this = self;
                $crate::Export::description($export)
            }
        );
        $crate::forward_export!(@may_block [$($($own)+)?]
            fn may_block(&self) -> bool {
                let $this = self;
                $crate::Export::may_block($export)
            }
        );
        $crate::forward_export!(@refresh_may_block [$($($own)+)?]
            fn refresh_may_block(&self) -> bool {
                let $this = self;
                $crate::Export::refresh_may_block($export)
            }
        );
        $crate::forward_export!(@write [$($($own)+)?]
            fn write(
                &self,
                offset: u64,
                data: &[u8],
                fua: bool,
            ) -> ::core::result::Result<(), $crate::nbd_proto::Failure> {
                let $this = self;
                $crate::Export::write($export, offset, data, fua)
            }
        );
        $crate::forward_export!(@write_zeroes [$($($own)+)?]
            fn write_zeroes(
                &self,
                offset: u64,
                len: u64,
                mode: $crate::ZeroMode,
            ) -> ::core::result::Result<(), $crate::nbd_proto::Failure> {
                let $this = self;
                $crate::Export::write_zeroes($export, offset, len, mode)
            }
        );
        $crate::forward_export!(@trim [$($($own)+)?]
            fn trim(
                &self,
                offset: u64,
                len: u64,
                fua: bool,
            ) -> ::core::result::Result<(), $crate::nbd_proto::Failure> {
                let $this = self;
                $crate::Export::trim($export, offset, len, fua)
            }
        );
        $crate::forward_export!(@cache [$($($own)+)?]
            fn cache(
                &self,
                offset: u64,
                len: u64,
            ) -> ::core::result::Result<(), $crate::nbd_proto::Failure> {
                let $this = self;
                $crate::Export::cache($export, offset, len)
            }
        );
        $crate::forward_export!(@flush [$($($own)+)?]
            fn flush(&self) -> ::core::result::Result<(), $crate::nbd_proto::Failure> {
                let $this = self;
                $crate::Export::flush($export)
            }
        );
        $crate::forward_export!(@finds_zeroes [$($($own)+)?]
            fn finds_zeroes(&self) -> bool {
                let $this = self;
                $crate::Export::finds_zeroes($export)
            }
        );
        $crate::forward_export!(@allocation [$($($own)+)?]
            fn allocation(
                &self,
                offset: u64,
                len: u64,
            ) -> ::core::result::Result<
                $crate::nbd_proto::meta::Extent,
                $crate::nbd_proto::Failure,
            > {
                let $this = self;
                $crate::Export::allocation($export, offset, len)
            }
        );
        $crate::forward_export!(@quick_allocation [$($($own)+)?]
            fn quick_allocation(
                &self,
                offset: u64,
                len: u64,
            ) -> ::core::result::Result<
                $crate::nbd_proto::meta::Extent,
                $crate::nbd_proto::Failure,
            > {
                let $this = self;
                $crate::Export::quick_allocation($export, offset, len)
            }
        );
        $crate::forward_export!(@contexts [$($($own)+)?]
            fn contexts(&self) -> ::std::vec::Vec<$crate::MetaContext> {
                let $this = self;
                $crate::Export::contexts($export)
            }
        );
        $crate::forward_export!(@block_status [$($($own)+)?]
            fn block_status(
                &self,
                context: &$crate::nbd_proto::ContextName,
                offset: u64,
                len: u64,
                each: &mut dyn FnMut(
                    $crate::nbd_proto::meta::Extent,
                ) -> ::core::ops::ControlFlow<()>,
            ) -> ::core::result::Result<(), $crate::nbd_proto::Failure> {
                let $this = self;
                $crate::Export::block_status($export, context, offset, len, each)
            }
        );
    };
    // A method that the wrapper has itself is found in its list and left out.
    (@size [size $($_:ident)*] $($method:tt)*) => {};
    (@refresh [refresh $($_:ident)*] $($method:tt)*) => {};
    (@read [read $($_:ident)*] $($method:tt)*) => {};
    (@read_unless_zero [read_unless_zero $($_:ident)*] $($method:tt)*) => {};
    (@read_now [read_now $($_:ident)*] $($method:tt)*) => {};
    (@flags [flags $($_:ident)*] $($method:tt)*) => {};
    (@block_sizes [block_sizes $($_:ident)*] $($method:tt)*) => {};
    (@description [description $($_:ident)*] $($method:tt)*) => {};
    (@may_block [may_block $($_:ident)*] $($method:tt)*) => {};
    (@refresh_may_block [refresh_may_block $($_:ident)*] $($method:tt)*) => {};
    (@write [write $($_:ident)*] $($method:tt)*) => {};
    (@write_zeroes [write_zeroes $($_:ident)*] $($method:tt)*) => {};
    (@trim [trim $($_:ident)*] $($method:tt)*) => {};
    (@cache [cache $($_:ident)*] $($method:tt)*) => {};
    (@flush [flush $($_:ident)*] $($method:tt)*) => {};
    (@finds_zeroes [finds_zeroes $($_:ident)*] $($method:tt)*) => {};
    (@allocation [allocation $($_:ident)*] $($method:tt)*) => {};
    (@quick_allocation [quick_allocation $($_:ident)*] $($method:tt)*) => {};
    (@contexts [contexts $($_:ident)*] $($method:tt)*) => {};
    (@block_status [block_status $($_:ident)*] $($method:tt)*) => {};
    (@$name:ident [$other:ident $($own:ident)*] $($method:tt)*) => {
        $crate::forward_export!(@$name [$($own)*] $($method)*);
    };
    (@$name:ident []) => {
        ::core::compile_error!(::core::concat!("Export has no method ", ::core::stringify!($name)));
    };
    (@$name:ident [] $($method:tt)*) => { $($method)* };
}

impl<E: Export + ?Sized> Export for &E {
    forward_export!(|this| &**this);
}

impl<E: Export + ?Sized> Export for Box<E> {
    forward_export!(|this| &**this);
}

impl<E: Export + ?Sized> Export for Arc<E> {
    forward_export!(|this| &**this);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{export_info, model::Recorder};
    use nbd_proto::{Errno, Failure};
    use std::sync::atomic::Ordering;

    #[test]
    fn a_pointer_to_an_export_behaves_like_the_export() {
        let recorder = Arc::new(Recorder::default());
        let shared: Arc<dyn Export> = recorder.clone();
        let boxed: Box<dyn Export> = Box::new(recorder.clone());
        let pointers: [&dyn Export; 4] = [&&*recorder, &recorder, &shared, &boxed];
        for pointer in pointers {
            let described = (pointer.size(), export_info(pointer), pointer.may_block());
            assert_eq!(described, (1000, export_info(&recorder), false));
            let (failures, calls) = recorder.everything(pointer, 100);
            assert_eq!((failures, calls), (vec![], Recorder::all(100)));
        }
    }

    #[test]
    fn a_pointer_to_an_export_refreshes_it() {
        struct Growing(std::sync::atomic::AtomicU64);
        impl Export for Growing {
            fn size(&self) -> u64 {
                self.0.load(Ordering::Relaxed)
            }
            fn refresh(&self) {
                self.0.fetch_add(512, Ordering::Relaxed);
            }
            fn refresh_may_block(&self) -> bool {
                false
            }
            fn read(&self, _: u64, _: &mut [u8]) -> Result<(), Failure> {
                Ok(())
            }
        }
        let growing = Arc::new(Growing(512.into()));
        let pointer: &dyn Export = &growing;
        assert!(pointer.may_block() && !pointer.refresh_may_block());
        pointer.refresh();
        assert_eq!((pointer.size(), growing.size()), (1024, 1024));
    }

    /// Forwards to the export that it is made of.
    struct Refuser<E>(E);

    impl<E: Export> Export for Refuser<E> {
        forward_export!(|this| &this.0, except flush, size);

        fn size(&self) -> u64 {
            512
        }

        fn flush(&self) -> Result<(), Failure> {
            Err(Errno::Perm.into())
        }
    }

    #[test]
    fn a_wrapper_has_its_own_methods_and_forwards_the_rest() {
        let recorder = Recorder::default();
        let wrapper = Refuser(&recorder);
        assert_eq!((wrapper.size(), export_info(&wrapper).size), (512, 512));
        let (failures, calls) = recorder.everything(&wrapper, 100);
        assert_eq!(failures, [Errno::Perm.into()]);
        let mut expected = Recorder::all(100);
        expected.retain(|call| call != "flush");
        assert_eq!(calls, expected);
    }
}
