//! The client against servers that are right but inconvenient, and against servers that are wrong.

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
