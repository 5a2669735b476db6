//! The proof that `nbd-proto` needs no more than `core` and `alloc`.
//!
//! A program without the standard library has to define a panic handler and an allocator. This one
//! does, and therefore no longer builds as soon as `nbd-proto`, or anything below it, pulls the
//! standard library in: its panic handler would be a second one, E0152.
//!
//! It stands outside the workspace, whose other members would turn the feature `std` on.

#![no_std]

use core::{
    alloc::{GlobalAlloc, Layout},
    panic::PanicInfo,
    ptr,
};

// Naming the crate links it.
use nbd_proto as _;

#[panic_handler]
fn halt(_: &PanicInfo<'_>) -> ! {
    loop {}
}

struct NoMemory;

// SAFETY: a null pointer is how an allocator says that it has nothing to give, and so there is
// nothing that could be given back. None of this is ever run.
unsafe impl GlobalAlloc for NoMemory {
    unsafe fn alloc(&self, _: Layout) -> *mut u8 {
        ptr::null_mut()
    }

    unsafe fn dealloc(&self, _: *mut u8, _: Layout) {}
}

#[global_allocator]
static MEMORY: NoMemory = NoMemory;
