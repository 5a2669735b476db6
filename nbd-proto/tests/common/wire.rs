//! The connection between a scripted server and the client under test.
//!
//! A scenario consists of the server's bytes and the client's calls, and [`always`] plays it with
//! every way in which bytes can arrive: at once, one by one, into lent space, in random pieces. The
//! outcome must always be the same.

use bytes::BytesMut;
use core::fmt;
use nbd_proto::{Error, Phase, Step};

/// The delivery of the server's bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Delivery {
    /// All pending bytes, in one buffer.
    Whole,
    /// The same, with replies taken in as a whole where they are.
    WholeReplies,
    /// A buffer for each byte.
    OneByte,
    /// Into as much space as is lent.
    Lent,
    /// Into the space that is lent, one byte at a time.
    LentOneByte,
    /// Both ways by turns, in pieces of random length.
    Random(u64),
}

impl Delivery {
    /// An interpreter, which takes long for each, has the one that does all that the others do.
    pub(crate) const ALL: &[Self] = if cfg!(miri) {
        &[Self::Random(1)]
    } else {
        &[
            Self::Whole,
            Self::WholeReplies,
            Self::OneByte,
            Self::Lent,
            Self::LentOneByte,
            Self::Random(1),
            Self::Random(2),
            Self::Random(3),
        ]
    };
}

/// One piece of the arriving bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Piece {
    /// So many bytes in a buffer.
    Fed(usize),
    /// So many bytes in a buffer, which may be the first ones of a whole reply.
    FedReplies(usize),
    /// So many bytes, or fewer if less space is lent.
    Filled(usize),
}

/// Both directions of a connection.
#[derive(Debug)]
pub(crate) struct Wire {
    delivery: Delivery,
    random: u64,
    input: Vec<u8>,
    at: usize,
    /// The client's bytes since the last call of [`Wire::sent`].
    pub(crate) out: BytesMut,
    log: Vec<u8>,
}

/// Plays a scenario with every delivery, and returns the outcome, which is always the same.
pub(crate) fn always<T: PartialEq + fmt::Debug>(scenario: impl Fn(&mut Wire) -> T) -> T {
    let play = |delivery| {
        let mut wire = Wire::new(delivery);
        let outcome = scenario(&mut wire);
        let _ = wire.sent();
        (outcome, wire.log)
    };
    let expected = play(Delivery::Whole);
    for delivery in Delivery::ALL {
        assert_eq!(play(*delivery), expected, "{delivery:?}");
    }
    expected.0
}

impl Wire {
    pub(crate) fn new(delivery: Delivery) -> Self {
        let seed = match delivery {
            Delivery::Random(seed) => seed,
            _ => 0,
        };
        Self {
            delivery,
            random: 0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(seed + 1),
            input: Vec::new(),
            at: 0,
            out: BytesMut::new(),
            log: Vec::new(),
        }
    }

    /// The server sends `bytes`.
    pub(crate) fn says(&mut self, bytes: impl AsRef<[u8]>) -> &mut Self {
        self.input.extend_from_slice(bytes.as_ref());
        self
    }

    /// The number of the server's bytes that are unread.
    pub(crate) fn left(&self) -> usize {
        self.input.len() - self.at
    }

    /// The client's bytes since the last call.
    pub(crate) fn sent(&mut self) -> Vec<u8> {
        let sent = self.out.split().to_vec();
        self.log.extend_from_slice(&sent);
        sent
    }

    /// The delivery of the next bytes. To be called only when there are some.
    pub(crate) fn piece(&mut self) -> Piece {
        let left = self.left();
        match self.delivery {
            Delivery::Whole => Piece::Fed(left),
            Delivery::WholeReplies => Piece::FedReplies(left),
            Delivery::OneByte => Piece::Fed(1),
            Delivery::Lent => Piece::Filled(left),
            Delivery::LentOneByte => Piece::Filled(1),
            Delivery::Random(_) => {
                let longest = [3, 40, 5000][self.random(3)];
                let n = left.min(1 + self.random(longest));
                match self.random(4) {
                    0 => Piece::Fed(n),
                    1 => Piece::FedReplies(n),
                    _ => Piece::Filled(n),
                }
            }
        }
    }

    fn random(&mut self, below: usize) -> usize {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let below = u64::try_from(below).expect("a usize fits");
        usize::try_from((self.random >> 11) % below).expect("a remainder is small")
    }

    /// The next `n` bytes, which are not used up.
    pub(crate) fn peek(&self, n: usize) -> &[u8] {
        &self.input[self.at..self.at + n]
    }

    pub(crate) fn consume(&mut self, n: usize) {
        self.at += n;
    }

    /// Goes on with a phase for as long as there are bytes.
    pub(crate) fn run<P: Phase>(&mut self, mut phase: P) -> Result<Step<P, P::Next>, Error> {
        loop {
            let lent = phase.space().len();
            assert!((1..=4096).contains(&lent), "{lent} bytes of space");
            if self.left() == 0 {
                return Ok(Step::More(phase));
            }
            // Bytes that a phase writes before it fails are not to be sent.
            let mut out = BytesMut::new();
            let step = match self.piece() {
                Piece::Fed(n) | Piece::FedReplies(n) => {
                    let (used, step) = phase.feed(self.peek(n), &mut out)?;
                    assert!(used == n || matches!(step, Step::Done(_)));
                    self.consume(used);
                    step
                }
                Piece::Filled(n) => {
                    let n = n.min(lent);
                    phase.space()[..n].copy_from_slice(self.peek(n));
                    self.consume(n);
                    phase.filled(n, &mut out)?
                }
            };
            self.out.extend_from_slice(&out);
            match step {
                Step::More(more) => phase = more,
                done @ Step::Done(_) => return Ok(done),
            }
        }
    }

    /// Goes on with a phase that must end with the bytes that are there.
    pub(crate) fn finish<P: Phase>(&mut self, phase: P) -> Result<P::Next, Error> {
        match self.run(phase)? {
            Step::Done(next) => Ok(next),
            Step::More(_) => panic!("the phase waits for more bytes"),
        }
    }

    /// Whether a phase ends with the bytes that are there.
    pub(crate) fn ends<P: Phase>(&mut self, phase: P) -> Result<bool, Error> {
        Ok(matches!(self.run(phase)?, Step::Done(_)))
    }

    /// The server sends `bytes`, which must end the phase.
    pub(crate) fn answer<P: Phase>(
        &mut self,
        phase: P,
        bytes: impl AsRef<[u8]>,
    ) -> Result<P::Next, Error> {
        self.says(bytes).finish(phase)
    }
}
