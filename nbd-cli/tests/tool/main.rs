//! The commands that look at disks, copy and measure them.

mod copy;
mod guide;
mod help;
mod looking;
mod measuring;
mod support;
