//! A limit of the rate.

use crate::work::Work;
use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};
use tokio::time::{Instant, sleep_until};

/// Hands out time for bytes, to all threads in turn.
#[derive(Debug)]
pub(super) struct Pace {
    per_second: u64,
    /// When the next byte may be read.
    next: Mutex<Instant>,
}

impl Pace {
    pub(super) fn new(per_second: u64) -> Self {
        Self {
            per_second: per_second.max(1),
            next: Mutex::new(Instant::now()),
        }
    }

    /// Waits until so many bytes may be read, or until work is to stop.
    pub(super) async fn wait(&self, bytes: u64, work: &Work) {
        let turn = self.turn(bytes);
        tokio::select! {
            () = sleep_until(turn) => {}
            () = work.stopped() => {}
        }
    }

    fn turn(&self, bytes: u64) -> Instant {
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let turn = (*next).max(Instant::now());
        let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(self.per_second);
        *next = turn + Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        turn
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_one_after_the_other() {
        let pace = Pace::new(1000);
        let first = pace.turn(500);
        assert_eq!(pace.turn(250) - first, Duration::from_millis(500));
        assert_eq!(pace.turn(1) - first, Duration::from_millis(750));
    }
}
