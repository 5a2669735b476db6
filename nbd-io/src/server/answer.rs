//! The answers to a client's questions.

use super::negotiation::Negotiated;
use crate::{Exports, Offer, Unavailable, export_info};
use bytes::BytesMut;
use nbd_proto::{
    Error, ExportInfo, ExportName, HeaderStyle, TransmissionFlags,
    server::{
        ExportNameRequest, GoRequest, InfoRequest, ListMetaContextRequest, ListRequest, Options,
        Refusal, Requested, Security, SetMetaContextRequest,
    },
    wire::InfoType,
};

/// The largest minimum block size, in bytes, that a client may be expected to keep to without
/// having been refused.
const USUAL_MINIMUM: u32 = 512;

/// The outcome of an option.
pub(super) enum Answer<S> {
    /// Others may follow.
    Options(Options<S>),
    /// The client wants to end the connection.
    Aborted,
    /// None will follow for now.
    Negotiated(Negotiated),
}

/// Answers an option; the reply is appended to `out`.
pub(super) fn answer<S: Security>(
    requested: Requested<S>,
    exports: &dyn Exports,
    out: &mut BytesMut,
) -> Result<Answer<S>, Error> {
    Ok(match requested {
        Requested::List(request) => Answer::Options(list(request, exports, out)),
        Requested::Info(request) => Answer::Options(info(request, exports, out)),
        Requested::Go(request) => go(request, exports, out),
        Requested::ExportName(request) => Answer::Negotiated(export_name(request, exports, out)?),
        Requested::ListMetaContext(request) => {
            Answer::Options(list_meta_context(request, exports, out))
        }
        Requested::SetMetaContext(request) => {
            Answer::Options(set_meta_context(request, exports, out))
        }
        Requested::StartTls(start) => Answer::Negotiated(Negotiated::StartTls(start.into())),
        Requested::Abort(_) => Answer::Aborted,
    })
}

/// Finds an export for a client that may or may not have TLS up.
fn find(exports: &dyn Exports, name: &ExportName, secure: bool) -> Result<Offer, Unavailable> {
    let offer = exports.find(name)?;
    if offer.tls_only && !secure {
        return Err(Refusal::TlsRequired.into());
    }
    Ok(offer)
}

/// The description of an export for a client that called it `name`.
fn describe(offer: &Offer, name: &ExportName) -> ExportInfo {
    offer.export.refresh();
    let mut info = export_info(&offer.export);
    info.name = Some(offer.name.as_ref().unwrap_or(name).clone());
    // The answer drops those of these flags that are impossible with the negotiated headers.
    info.flags = info.flags | TransmissionFlags::SEND_DF | TransmissionFlags::BLOCK_STATUS_PAYLOAD;
    if offer.private {
        info.flags = info.flags.without(TransmissionFlags::CAN_MULTI_CONN);
    }
    info
}

/// Whether `asked`, for which `offer` was found, is the export for which contexts were selected.
fn is_same(
    exports: &dyn Exports,
    offer: &Offer,
    asked: &ExportName,
    selected: Option<&ExportName>,
) -> bool {
    let Some(selected) = selected else {
        return false;
    };
    let canonical = |offer: &Offer, name: &ExportName| {
        offer
            .name
            .as_ref()
            .map_or_else(|| name.clone(), Clone::clone)
    };
    asked == selected
        || exports
            .lookup(selected)
            .is_some_and(|other| canonical(&other, selected) == canonical(offer, asked))
}

/// Refuses clients that would not keep to the block sizes because they do not ask for them.
fn check_block_sizes(info: &ExportInfo, asks: bool) -> Result<(), Refusal> {
    match info.block_sizes {
        Some(sizes) if !asks && sizes.minimum() > USUAL_MINIMUM => {
            Err(Refusal::BlockSizeRequired(sizes))
        }
        _ => Ok(()),
    }
}

fn list<S: Security>(
    mut request: ListRequest<S>,
    exports: &dyn Exports,
    out: &mut BytesMut,
) -> Options<S> {
    for listing in exports.list() {
        if request.is_secure() || !listing.tls_only {
            request.entry(&listing.name, listing.description.as_str(), out);
        }
    }
    request.done(out)
}

fn info<S: Security>(
    request: InfoRequest<S>,
    exports: &dyn Exports,
    out: &mut BytesMut,
) -> Options<S> {
    let found = find(exports, request.name(), request.is_secure()).and_then(|offer| {
        let info = describe(&offer, request.name());
        check_block_sizes(&info, request.wants(InfoType::BlockSize))?;
        Ok((offer, info))
    });
    match found {
        Ok((offer, info)) => {
            let same = is_same(exports, &offer, request.name(), request.contexts_export());
            request.same_export_as_contexts(same).accept(&info, out)
        }
        Err(why) => request.refuse(why.refusal, why.message.as_str(), out),
    }
}

fn go<S: Security>(request: GoRequest<S>, exports: &dyn Exports, out: &mut BytesMut) -> Answer<S> {
    let found = find(exports, request.name(), request.is_secure()).and_then(|offer| {
        let info = describe(&offer, request.name());
        check_block_sizes(&info, request.wants(InfoType::BlockSize))?;
        Ok((offer, info))
    });
    match found {
        Ok((offer, info)) => {
            let name = request.name().clone();
            let same = is_same(exports, &offer, &name, request.contexts_export());
            let transmission = request.same_export_as_contexts(same).accept(&info, out);
            Answer::Negotiated(Negotiated::Entered {
                transmission,
                export: offer.export,
                name,
            })
        }
        Err(why) => Answer::Options(request.refuse(why.refusal, why.message.as_str(), out)),
    }
}

fn export_name<S: Security>(
    request: ExportNameRequest<S>,
    exports: &dyn Exports,
    out: &mut BytesMut,
) -> Result<Negotiated, Error> {
    let offer = match find(exports, request.name(), request.is_secure()) {
        Ok(offer) => offer,
        Err(Unavailable { refusal, .. }) => {
            return Err(request.refuse(match refusal {
                Refusal::TlsRequired => "the export is available with TLS only",
                Refusal::Unknown => "there is no export of this name",
                _ => "the export cannot be used now",
            }));
        }
    };
    let name = request.name().clone();
    let info = describe(&offer, &name);
    let same = is_same(exports, &offer, &name, request.contexts_export());
    let transmission = request.same_export_as_contexts(same).accept(&info, out);
    Ok(Negotiated::Entered {
        transmission,
        export: offer.export,
        name,
    })
}

fn list_meta_context<S: Security>(
    mut request: ListMetaContextRequest<S>,
    exports: &dyn Exports,
    out: &mut BytesMut,
) -> Options<S> {
    let offer = match find(exports, request.name(), request.is_secure()) {
        Ok(offer) => offer,
        Err(why) => return request.refuse(why.refusal, why.message.as_str(), out),
    };
    let extended = request.mode() == HeaderStyle::Extended;
    let (mut listed, mut left_out) = (false, false);
    for context in offer.export.contexts() {
        if context.wide && !extended {
            left_out |= request.wants(&context.name);
        } else {
            listed |= request.context(&context.name, out);
        }
    }
    // A client that finds something else is not to lose it by a refusal.
    if left_out && !listed {
        return request.refuse(Refusal::ExtendedHeadersRequired, "", out);
    }
    request.done(out)
}

fn set_meta_context<S: Security>(
    mut request: SetMetaContextRequest<S>,
    exports: &dyn Exports,
    out: &mut BytesMut,
) -> Options<S> {
    let offer = match find(exports, request.name(), request.is_secure()) {
        Ok(offer) => offer,
        Err(why) => return request.refuse(why.refusal, why.message.as_str(), out),
    };
    let extended = request.mode() == HeaderStyle::Extended;
    for context in offer.export.contexts() {
        // A description that cannot be sent counts as missing: the client goes on with the others.
        if !context.wide || extended {
            request.select(&context.name, out);
        }
    }
    request.done(out)
}
