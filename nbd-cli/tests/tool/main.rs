//! The commands that look at disks and measure them.

mod help;
mod looking;
mod measuring;
mod support;
