//! Every client of ours with every server of ours, over every kind of connection.
//!
//! The [`suite`] is written once, for the traits of [`clients`] and [`servers`].

#![expect(
    clippy::unwrap_used,
    reason = "a test fails by panicking, and so does its helper"
)]

mod census;
mod clients;
mod device;
#[path = "../server/exports.rs"]
mod exports;
mod runtimes;
mod servers;
mod suite;
mod vsock;
#[expect(dead_code, reason = "others need more of it")]
#[path = "../waiting/mod.rs"]
mod waiting;

use clients::{Blocking, On};
use runtimes::{OnAsyncStd, tokio_current_thread, tokio_multi_thread};
use servers::{Plain, Transport};

macro_rules! crossed {
    ($($client:ident: $make:expr;)*) => {
        $(mod $client {
            use super::*;

            with!(blocking, $make, Plain::default);
            with!(tokio_current_thread, $make, super::tokio_current_thread);
            with!(tokio_multi_thread, $make, super::tokio_multi_thread);
            with!(async_std, $make, OnAsyncStd::default);
        })*
    };
}

macro_rules! with {
    ($server:ident, $client:expr, $host:expr) => {
        mod $server {
            use super::*;

            #[test]
            fn over_tcp() {
                suite::run($client, $host, Transport::Tcp);
            }

            #[test]
            fn over_unix() {
                suite::run($client, $host, Transport::Unix);
            }

            #[test]
            fn over_tls() {
                suite::run($client, $host, Transport::Tls);
            }
        }
    };
}

crossed! {
    client_blocking: || Blocking;
    client_tokio_current_thread: || On(tokio_current_thread());
    client_tokio_multi_thread: || On(tokio_multi_thread());
    client_async_std: || On(OnAsyncStd::default());
}
