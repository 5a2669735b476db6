//! The window of pieces under way at once: the smallest that is as fast as larger ones.
//!
//! A few buffers that are used again and again stay in the processor's cache, which makes copying on
//! one machine a third cheaper. A server that takes long to answer needs many.

use std::{
    cell::Cell,
    time::{Duration, Instant},
};
use tokio::sync::Notify;

/// The first size.
const LEAST: usize = 2;

/// Limit of the pieces of all threads together, in bytes. A server that is 25 ms away sends up to 670 MB in
/// a second then.
const BYTES: u64 = 16 << 20;

/// Number of pieces, times the window, that make a rate.
const ROUND: usize = 8;

/// By how much a larger window has to be faster, in percent.
const GAIN: u32 = 15;

/// After how many rounds a larger window is tried again.
const RETRY_ROUNDS: u32 = 32;

/// The pieces of one thread that are under way.
#[derive(Debug)]
pub(super) struct Window {
    under_way: Cell<usize>,
    size: Cell<usize>,
    room: Notify,
    /// The largest size.
    most: usize,
    probe: Option<Cell<Probe>>,
}

/// The largest window of each of so many threads, with pieces of this length in bytes.
pub(super) fn most(piece: u64, threads: usize) -> usize {
    let pieces = usize::try_from(BYTES / piece.max(1)).unwrap_or(usize::MAX);
    (pieces / threads.max(1)).clamp(2 * LEAST, 64)
}

/// Finds the size.
#[derive(Clone, Copy, Debug)]
struct Probe {
    round_began: Instant,
    /// Number of pieces that are missing from the round.
    missing: usize,
    /// The window before this one, if this one is tried, and how long a piece took with that.
    before: Option<(usize, Duration)>,
    /// Number of rounds until a larger window is tried.
    rounds_to_retry: u32,
}

impl Window {
    /// Of this size, or of one that is found and is no larger than `most`.
    pub(super) fn new(size: Option<usize>, most: usize) -> Self {
        let first = size.unwrap_or(LEAST);
        Self {
            under_way: Cell::new(0),
            size: Cell::new(first),
            room: Notify::new(),
            most,
            probe: size.is_none().then(|| {
                Cell::new(Probe {
                    round_began: Instant::now(),
                    missing: first * ROUND,
                    before: None,
                    rounds_to_retry: 0,
                })
            }),
        }
    }

    /// Waits until one more piece may be under way. One waits at a time.
    pub(super) async fn enter(&self) {
        while self.under_way.get() >= self.size.get() {
            self.room.notified().await;
        }
        self.under_way.set(self.under_way.get() + 1);
    }

    /// A piece is done.
    pub(super) fn leave(&self) {
        self.under_way.set(self.under_way.get().saturating_sub(1));
        if let Some(probe) = &self.probe {
            let mut next = probe.get();
            self.size
                .set(next.count(self.size.get(), self.most, Instant::now));
            probe.set(next);
        }
        self.room.notify_one();
    }
}

impl Probe {
    /// Counts a piece, and says how large the window is from now on.
    fn count(&mut self, size: usize, most: usize, now: impl FnOnce() -> Instant) -> usize {
        self.missing -= 1;
        if self.missing > 0 {
            return size;
        }
        let now = now();
        let pieces = u32::try_from(size * ROUND).unwrap_or(u32::MAX);
        let each = (now - self.round_began) / pieces;
        let next = self.round(size, most, each);
        self.round_began = now;
        self.missing = next * ROUND;
        next
    }

    /// The size after a round in which a piece took so long.
    fn round(&mut self, size: usize, most: usize, each: Duration) -> usize {
        let larger = (2 * size).min(most);
        match self.before.take() {
            Some((smaller, before)) if each * (100 + GAIN) > before * 100 => {
                self.rounds_to_retry = RETRY_ROUNDS;
                smaller
            }
            _ if self.rounds_to_retry > 0 => {
                self.rounds_to_retry -= 1;
                size
            }
            _ if larger > size => {
                self.before = Some((size, each));
                larger
            }
            _ => size,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The size after some rounds with a server that answers after `latency` and needs `work` for
    /// each piece.
    fn settled(latency: u64, work: u64) -> usize {
        let mut probe = Probe {
            round_began: Instant::now(),
            missing: LEAST * ROUND,
            before: None,
            rounds_to_retry: 0,
        };
        (0..RETRY_ROUNDS).fold(LEAST, |size, _| {
            let each = (latency / size as u64).max(work);
            probe.round(size, most(512 << 10, 1), Duration::from_micros(each))
        })
    }

    #[test]
    fn a_server_that_is_busy_gets_few_pieces_and_one_that_is_far_many() {
        assert_eq!(settled(300, 200), LEAST);
        assert_eq!(settled(50_000, 200), 32);
        assert_eq!(settled(1500, 200), 8);
    }

    #[test]
    fn all_windows_together_take_little_memory() {
        assert_eq!(most(512 << 10, 2), 16);
        assert_eq!(most(4096, 1), 64);
        assert_eq!(most(32 << 20, 2), 4);
    }

    #[test]
    fn a_round_counts_its_pieces() {
        let window = Window::new(None, 32);
        for _ in 0..LEAST * ROUND - 1 {
            window.leave();
            assert_eq!(window.size.get(), LEAST);
        }
        window.leave();
        assert_eq!(window.size.get(), 2 * LEAST);
    }
}
