//! `NBD_OPT_LIST_META_CONTEXT` and `NBD_OPT_SET_META_CONTEXT`: questions about an export's meta
//! contexts.

use super::{
    Options, Refusal, Security,
    export::Infos,
    options::Ruling,
    refusal::{self, Question, put_ack},
    transmission::Context,
};
use crate::{
    ContextName, ExportName, NameError,
    server::Limits,
    wire::{
        HeaderStyle, MetaContextReply, MetaContextRequest, OptionCode, OptionReplyCode,
        put_option_reply,
    },
};
use alloc::{collections::BTreeSet, sync::Arc, vec::Vec};
use bytes::BytesMut;

/// The contexts that a client selected, and for which export.
#[derive(Debug)]
pub(super) struct Selection {
    pub(super) export: ExportName,
    pub(super) contexts: Arc<[Context]>,
}

/// The data of a meta context option, checked.
#[derive(Debug)]
pub(super) struct Queries {
    export: ExportName,
    /// Those that can name a context, each once.
    queries: Vec<ContextName>,
    /// There was no query at all.
    none: bool,
}

impl Queries {
    pub(super) fn new(data: &[u8], limits: &Limits) -> Result<Self, Ruling> {
        let invalid = |text| (OptionReplyCode::ErrInvalid, text);
        let request = MetaContextRequest::decode(data)
            .ok_or_else(|| invalid("the lengths in the option contradict each other"))?;
        let export = ExportName::try_from(request.export)
            .map_err(|_| invalid("the name is too long, not UTF-8, or contains NUL"))?;
        let count = request.queries.count_left();
        if count > limits.meta_queries {
            return Err((
                OptionReplyCode::ErrTooBig,
                "the option has too many queries",
            ));
        }
        let mut queries = Vec::new();
        for query in request.queries {
            match ContextName::try_from(query) {
                Ok(query) => {
                    if !queries.contains(&query) {
                        queries.push(query);
                    }
                }
                // It can select nothing, and is no reason to refuse the others.
                Err(NameError::NotAContext) => {}
                Err(_) => return Err(invalid("a query is too long, not UTF-8, or contains NUL")),
            }
        }
        Ok(Self {
            export,
            queries,
            none: count == 0,
        })
    }

    fn question(&self, option: OptionCode) -> Question<'_> {
        Question {
            option,
            export: Some(&self.export),
            infos: Infos::default(),
            only_base: !self.none && self.queries.iter().all(|query| query.namespace() == "base"),
        }
    }
}

/// The client asks which meta contexts an export has.
///
/// Spec: `NBD_OPT_LIST_META_CONTEXT` in [Option types](https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md#option-types).
#[derive(Debug)]
#[must_use = "the client waits for an answer"]
pub struct ListMetaContextRequest<S> {
    options: Options<S>,
    queries: Queries,
    listed: BTreeSet<ContextName>,
}

impl<S: Security> ListMetaContextRequest<S> {
    pub(super) const fn new(options: Options<S>, queries: Queries) -> Self {
        Self {
            options,
            queries,
            listed: BTreeSet::new(),
        }
    }

    /// The export's name; the empty name is the default export.
    #[must_use]
    pub const fn name(&self) -> &ExportName {
        &self.queries.export
    }

    /// Whether TLS is up.
    #[must_use]
    pub const fn is_secure(&self) -> bool {
        S::SECURE
    }

    /// The headers that transmission would use now.
    #[must_use]
    pub const fn mode(&self) -> HeaderStyle {
        self.options.mode()
    }

    /// Whether the client asks for all contexts.
    #[must_use]
    pub const fn wants_all(&self) -> bool {
        self.queries.none
    }

    /// The client's queries, each once. A query that ends in a colon stands for everything that
    /// starts with it.
    pub fn queries(&self) -> impl ExactSizeIterator<Item = &ContextName> {
        self.queries.queries.iter()
    }

    /// Whether the client asks for this context.
    #[must_use]
    pub fn wants(&self, context: &ContextName) -> bool {
        self.queries.none
            || self.queries().any(|query| {
                let (query, context) = (query.as_str(), context.as_str());
                query == context || query.ends_with(':') && context.starts_with(query)
            })
    }

    /// Lists a context, if the client asks for it and it was not listed before. Returns whether
    /// it was.
    pub fn context(&mut self, context: &ContextName, out: &mut BytesMut) -> bool {
        // A wildcard is a query and names no context.
        let fresh = !context.leaf().is_empty()
            && self.wants(context)
            && self.listed.insert(context.clone());
        if fresh {
            put_option_reply(
                OptionCode::ListMetaContext,
                OptionReplyCode::MetaContext,
                out,
                |out| MetaContextReply::encode(0, context, out),
            );
        }
        fresh
    }

    /// Ends the list.
    #[must_use = "negotiation goes on"]
    pub fn done(self, out: &mut BytesMut) -> Options<S> {
        put_ack(OptionCode::ListMetaContext, out);
        self.options
    }

    /// Refuses, or ends a list with [`Refusal::ExtendedHeadersRequired`] if it has contexts whose
    /// status needs 64 bits. An empty `text` stands for words of this crate's.
    #[must_use = "negotiation goes on"]
    pub fn refuse(self, refusal: Refusal, text: &str, out: &mut BytesMut) -> Options<S> {
        let question = self.queries.question(OptionCode::ListMetaContext);
        refusal::refuse(&self.options, &question, refusal, text, out);
        self.options
    }
}

/// The client selects meta contexts of an export.
///
/// Its earlier selection is forgotten already. The selection holds if the client goes on to use the
/// same export.
///
/// Spec: `NBD_OPT_SET_META_CONTEXT` in [Option types](https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md#option-types).
#[derive(Debug)]
#[must_use = "the client waits for an answer"]
pub struct SetMetaContextRequest<S> {
    options: Options<S>,
    queries: Queries,
    contexts: Vec<Context>,
}

impl<S: Security> SetMetaContextRequest<S> {
    pub(super) const fn new(options: Options<S>, queries: Queries) -> Self {
        Self {
            options,
            queries,
            contexts: Vec::new(),
        }
    }

    /// The export's name; the empty name is the default export.
    #[must_use]
    pub const fn name(&self) -> &ExportName {
        &self.queries.export
    }

    /// Whether TLS is up.
    #[must_use]
    pub const fn is_secure(&self) -> bool {
        S::SECURE
    }

    /// The headers that transmission would use now. A context whose status needs 64 bits can be
    /// selected in [`HeaderStyle::Extended`] only.
    #[must_use]
    pub const fn mode(&self) -> HeaderStyle {
        self.options.mode()
    }

    /// The contexts that the client wants, each once.
    pub fn queries(&self) -> impl ExactSizeIterator<Item = &ContextName> {
        self.queries.queries.iter()
    }

    /// Selects a context, if the client asks for it by this very name, and returns its number in
    /// this connection. Selecting it again changes nothing.
    pub fn select(&mut self, context: &ContextName, out: &mut BytesMut) -> Option<u32> {
        if let Some(context) = self.contexts.iter().find(|known| known.name() == context) {
            return Some(context.id());
        }
        if context.leaf().is_empty() || !self.queries.queries.contains(context) {
            return None;
        }
        let id = u32::try_from(self.contexts.len()).ok()?.checked_add(1)?;
        put_option_reply(
            OptionCode::SetMetaContext,
            OptionReplyCode::MetaContext,
            out,
            |out| MetaContextReply::encode(id, context, out),
        );
        self.contexts.push(Context::new(id, context.clone()));
        Some(id)
    }

    /// Ends the selection, which may be empty.
    #[must_use = "negotiation goes on"]
    pub fn done(mut self, out: &mut BytesMut) -> Options<S> {
        put_ack(OptionCode::SetMetaContext, out);
        self.options.negotiated.selection = Some(Selection {
            export: self.queries.export,
            contexts: self.contexts.into(),
        });
        self.options
    }

    /// Refuses; nothing is selected. An empty `text` stands for words of this crate's.
    #[must_use = "negotiation goes on"]
    pub fn refuse(self, refusal: Refusal, text: &str, out: &mut BytesMut) -> Options<S> {
        let question = self.queries.question(OptionCode::SetMetaContext);
        refusal::refuse(&self.options, &question, refusal, text, out);
        self.options
    }
}
