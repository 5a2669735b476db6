//! A client that any number of tasks share.

mod link;

#[cfg(test)]
mod tests;
