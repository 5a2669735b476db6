//! Trust and credentials of TLS connections, the same for every runtime.
//!
//! Everything that touches rustls is in this module, but the blocking driver's stream, which two
//! threads use.
//!
//! # The first connection of a process
//!
//! aws-lc-rs spends 0.04 to 0.3 s on the first random number of a process, because it measures the
//! jitter of the processor's timing beside asking the system. Servers do that when TLS is given to
//! them, clients when their configuration is built. A program whose users wait for that can be built
//! with `AWS_LC_SYS_NO_JITTER_ENTROPY=1` in the environment (or below `[env]` of its
//! `.cargo/config.toml`, as the tests of this crate are), after which the system and the processor's
//! generator alone are asked, or with ring, which never does it.

use rustls::crypto::CryptoProvider;
use std::sync::Arc;

mod client;
mod error;
mod identity;
mod names;
mod pin;
mod received;
mod server;
mod source;
mod transport;
mod verify;

pub use client::ClientTls;
pub use error::TlsError;
pub use names::PeerNames;
pub use pin::{NoPin, Pin};
#[doc(hidden)]
pub use received::Received;
pub use rustls;
pub use server::ServerTls;
pub use transport::TlsTransport;

#[cfg(all(test, any(feature = "aws-lc-rs", feature = "ring")))]
mod tests;

/// Limit of bytes to be sent that rustls may hold back: six records for each system call. They are
/// memory that is freed when they are sent, of which the C library keeps 128 KiB. Memory beyond it
/// goes back to the system, and with 256 KiB here each write of so much faulted its pages in again,
/// which cost as much as encrypting them.
#[doc(hidden)]
pub const SEND_BUFFER: usize = 96 << 10;

/// The cryptography that the features chose: aws-lc-rs, else ring, else the provider that the
/// program has installed for the whole process.
///
/// # Errors
///
/// When there is none.
pub fn provider() -> Result<Arc<CryptoProvider>, TlsError> {
    #[cfg(feature = "aws-lc-rs")]
    return Ok(Arc::new(rustls::crypto::aws_lc_rs::default_provider()));
    #[cfg(all(feature = "ring", not(feature = "aws-lc-rs")))]
    return Ok(Arc::new(rustls::crypto::ring::default_provider()));
    #[cfg(not(any(feature = "ring", feature = "aws-lc-rs")))]
    CryptoProvider::get_default()
        .map(Arc::clone)
        .ok_or(TlsError::NoCryptography)
}

/// The same, after its initialisation, once in a process. aws-lc-rs spends up to some tenths of a
/// second on the first random number (it measures the jitter of the processor's timing), which is
/// better spent while a configuration is built than in the middle of a handshake.
fn warm_provider() -> Result<Arc<CryptoProvider>, TlsError> {
    let provider = provider()?;
    // A failure will be that of the handshake.
    let _ = provider.secure_random.fill(&mut [0]);
    Ok(provider)
}
