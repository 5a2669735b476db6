//! The messages that answer a request, as a server keeps them until they are sent.

use bytes::{Buf, BufMut};
use nbd_proto::server::{Part, Receipt, Reply};
use std::collections::VecDeque;

/// All messages of one reply, and the proof that it is one.
pub(crate) struct Answer {
    pub(crate) messages: VecDeque<Vec<u8>>,
    pub(crate) receipt: Receipt,
}

/// Messages that came before the last one of a reply.
#[derive(Default)]
pub(crate) struct Messages(VecDeque<Vec<u8>>);

impl Messages {
    /// Adds the last message.
    pub(crate) fn last<P: Buf>(mut self, reply: Reply<P>) -> Answer {
        let Reply { frame, receipt } = reply;
        self.0.push_back(written(frame));
        let Self(messages) = self;
        Answer { messages, receipt }
    }

    /// Adds a message, which may be the last one.
    pub(crate) fn part<P: Buf, T>(mut self, part: Part<P, T>) -> Result<(Self, T), Answer> {
        match part {
            Part::Last(reply) => Err(self.last(reply)),
            Part::More { frame, rest } => {
                self.0.push_back(written(frame));
                Ok((self, rest))
            }
        }
    }
}

/// A reply of one message.
pub(crate) fn only<P: Buf>(reply: Reply<P>) -> Answer {
    Messages::default().last(reply)
}

fn written(frame: impl Buf) -> Vec<u8> {
    let mut message = Vec::new();
    message.put(frame);
    message
}
