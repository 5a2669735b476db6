//! `NBD_OPT_LIST`: the question which exports there are.

use super::{
    Options, Refusal, Security,
    export::Infos,
    refusal::{self, Question, put_ack, shorten},
};
use crate::{
    ExportName, MAX_STRING,
    wire::{OptionCode, OptionReplyCode, ServerReply, put_option_reply},
};
use bytes::BytesMut;

/// The client asks which exports there are.
///
/// The list may leave out exports that the client must not know of, such as those that need TLS
/// where it is not up.
///
/// Spec: `NBD_OPT_LIST` in [Option types](https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md#option-types).
#[derive(Debug)]
#[must_use = "the client waits for an answer"]
pub struct ListRequest<S> {
    options: Options<S>,
    entries: u32,
}

impl<S: Security> ListRequest<S> {
    pub(super) const fn new(options: Options<S>) -> Self {
        Self {
            options,
            entries: 0,
        }
    }

    /// Whether TLS is up.
    #[must_use]
    pub const fn is_secure(&self) -> bool {
        S::SECURE
    }

    /// Lists an export. The description is for people and may be empty; it is cut after 4096 bytes.
    pub fn entry(&mut self, name: &ExportName, description: &str, out: &mut BytesMut) {
        put_option_reply(OptionCode::List, OptionReplyCode::Server, out, |out| {
            ServerReply::encode(name, shorten(description, MAX_STRING), out);
        });
        self.entries = self.entries.saturating_add(1);
    }

    /// Ends the list.
    #[must_use = "negotiation goes on"]
    pub fn done(mut self, out: &mut BytesMut) -> Options<S> {
        put_ack(OptionCode::List, out);
        self.options.connection.listed(self.entries);
        self.options
    }

    /// Refuses, or gives up half-way. An empty `text` stands for words of this crate's.
    #[must_use = "negotiation goes on"]
    pub fn refuse(mut self, refusal: Refusal, text: &str, out: &mut BytesMut) -> Options<S> {
        let question = Question {
            option: OptionCode::List,
            export: None,
            infos: Infos::default(),
            only_base: false,
        };
        refusal::refuse(&self.options, &question, refusal, text, out);
        self.options.connection.listed(self.entries);
        self.options
    }
}
