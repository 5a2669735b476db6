//! The requirements for the server on every runtime. The tests of each of them include this file,
//! and define `Server`, how a test is run `on_runtime`, and how a listener is served there
//! (`serve`), which is begun in the context of the runtime and sends its result through a channel.

pub(crate) mod asynchronous;
pub(crate) mod commands;
#[cfg(feature = "tls-base")]
mod dropped;
#[cfg(feature = "tls-base")]
#[path = "../example.rs"]
pub(crate) mod example;
mod life;
mod limits;
mod listeners;
mod lookups;
mod many_clients;
#[cfg(feature = "tls-base")]
pub(crate) mod programs;
mod rates;
mod sparse;
mod stalls;
pub(crate) mod support;
#[cfg(feature = "tls-base")]
pub(crate) mod tls;

use super::{Server, on_runtime, serve};
