//! The client while its server is killed again and again, as on every runtime.

#![cfg(feature = "tls-base")]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "../../../interop/adapters/example.rs"]
mod example;
mod recovering;
#[path = "../../../interop/adapters/recovery.rs"]
mod recovery;
