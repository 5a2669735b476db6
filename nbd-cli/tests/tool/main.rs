//! The commands that look at disks, copy and measure them.

mod checking;
mod copy;
mod guide;
mod help;
mod looking;
mod machine;
mod manners;
mod measuring;
mod objects;
mod others;
mod support;
