//! The client against servers that obey the protocol awkwardly, and against servers that break it.

mod bad;
mod disconnects;
mod extents;
mod flow;
mod late;
mod negotiation;
mod options;
mod ranges;
mod recovery;
mod regressions;
mod several;
mod streams;
mod support;
mod threads;
#[cfg(feature = "tls-base")]
mod tls;
