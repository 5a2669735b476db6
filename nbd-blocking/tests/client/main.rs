//! The client against servers that obey the protocol awkwardly, and against servers that break it.

mod bad;
mod farewells;
mod flow;
mod haggling;
mod late;
mod options;
mod ranges;
mod recovery;
mod regressions;
mod several;
mod support;
mod threads;
#[cfg(feature = "tls-base")]
mod tls;
