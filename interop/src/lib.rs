//! Foreign NBD programs as peers for this workspace's tests.
//!
//! A server is described by a builder, started, and reached through its [`Server`], which stops it
//! when dropped. Its output is kept and printed when the test fails.
//!
//! ```
//! use interop::{Nbdkit, Peer, deadline, require};
//! use std::time::Duration;
//!
//! deadline(Duration::from_secs(60), || {
//!     let Some(server) = Nbdkit::new("memory").param("size=1M").start() else { return };
//!     let Some(nbdinfo) = require(Peer::NbdInfo) else { return };
//!     let size = nbdinfo.run(["--size", &server.uri("")]).expect_success();
//!     assert_eq!(size.trim(), "1048576");
//! });
//! ```
//!
//! Where a program is not installed the builder answers `None` and says so on standard error, so
//! that the tests still run on a bare machine. Under `CI=true` the same is a failure: otherwise a
//! skipped test would never be noticed there.
//!
//! Everything here panics on failure, since its only callers are tests.

mod bytes;
mod certificates;
mod deadline;
mod image;
mod latency;
mod linux;
mod load;
mod memory_store;
mod names;
mod nbd_server;
mod nbdinfo;
mod nbdkit;
mod peer;
mod port;
mod process;
mod qemu_nbd;
mod scripted;
mod server;
mod storage_daemon;
mod stores;
mod table;
mod tap;

pub use bytes::{KIB, MIB, assert_same, pattern};
pub use certificates::{Certificates, Flaw};
pub use deadline::{deadline, run};
pub use image::{Format, Image};
pub use latency::LatencyProxy;
pub use linux::ignored_tests_in_linux;
pub use load::{Access, mixed_load, peak_memory};
pub use memory_store::{MemoryStore, Traffic};
pub use names::with_names;
pub use nbd_server::NbdServer;
pub use nbdinfo::{info, map};
pub use nbdkit::Nbdkit;
pub use peer::{Finished, Peer, Program, require};
pub use port::Port;
pub use qemu_nbd::QemuNbd;
pub use scripted::{Conversation, Request, Scripted};
pub use server::{Endpoint, Listen, Server};
pub use storage_daemon::StorageDaemon;
pub use stores::ObjectStoreServer;
pub use table::{Support, Table};
pub use tap::{Recording, Tap};

/// The examples of the project's front page.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
pub struct FrontPage;

/// The examples of the guide, which are run.
#[cfg(doctest)]
pub mod guide {
    macro_rules! pages {
        ($($name:ident $path:literal),*) => {
            $(
                #[doc = include_str!(concat!("../../docs/guide/src/", $path))]
                pub struct $name;
            )*
        };
    }

    pages!(
        Nbd "nbd.md",
        Crates "crates.md",
        Client "client.md",
        Server "server.md",
        Durability "durability.md",
        Throughput "throughput.md",
        Tls "tls.md",
        Exports "exports.md",
        Observing "observing.md",
        Core "core.md",
        Backup "backup.md"
    );
}
