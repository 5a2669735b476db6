//! The commands that look at disks and measure them.

mod looking;
mod measuring;
mod support;
