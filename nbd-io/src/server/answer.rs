//! The answers to a client's questions.

use super::{
    lookup::{Found, FoundExport},
    negotiation::Negotiated,
};
use crate::Unavailable;
use bytes::BytesMut;
use nbd_proto::{
    Error, HeaderStyle,
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
    found: Found,
    out: &mut BytesMut,
) -> Result<Answer<S>, Error> {
    Ok(match requested {
        Requested::List(request) => Answer::Options(list(request, found, out)),
        Requested::Info(request) => Answer::Options(info(request, found.export(), out)),
        Requested::Go(request) => go(request, found.export(), out),
        Requested::ExportName(request) => {
            Answer::Negotiated(export_name(request, found.export(), out)?)
        }
        Requested::ListMetaContext(request) => {
            Answer::Options(list_meta_context(request, found.export(), out))
        }
        Requested::SetMetaContext(request) => {
            Answer::Options(set_meta_context(request, found.export(), out))
        }
        Requested::StartTls(start) => Answer::Negotiated(Negotiated::StartTls(start.into())),
        Requested::Abort(_) => Answer::Aborted,
    })
}

/// The export that an answer is about, or the reason for which the client does not get it.
type Wanted = Result<Box<FoundExport>, Unavailable>;

/// Refuses clients that would not keep to the block sizes because they do not ask for them.
fn check_block_sizes(found: Box<FoundExport>, asks: bool) -> Wanted {
    match found.info.block_sizes {
        Some(sizes) if !asks && sizes.minimum() > USUAL_MINIMUM => {
            Err(Refusal::BlockSizeRequired(sizes).into())
        }
        _ => Ok(found),
    }
}

fn list<S: Security>(mut request: ListRequest<S>, found: Found, out: &mut BytesMut) -> Options<S> {
    for listing in found.list() {
        if request.is_secure() || !listing.tls_only {
            request.entry(&listing.name, listing.description.as_str(), out);
        }
    }
    request.done(out)
}

fn info<S: Security>(request: InfoRequest<S>, wanted: Wanted, out: &mut BytesMut) -> Options<S> {
    let asks = request.wants(InfoType::BlockSize);
    match wanted.and_then(|found| check_block_sizes(found, asks)) {
        Ok(found) => request
            .same_export_as_contexts(found.same)
            .accept(&found.info, out),
        Err(why) => request.refuse(why.refusal, why.message.as_str(), out),
    }
}

fn go<S: Security>(request: GoRequest<S>, wanted: Wanted, out: &mut BytesMut) -> Answer<S> {
    let asks = request.wants(InfoType::BlockSize);
    match wanted.and_then(|found| check_block_sizes(found, asks)) {
        Ok(found) => {
            let name = request.name().clone();
            let transmission = request
                .same_export_as_contexts(found.same)
                .accept(&found.info, out);
            Answer::Negotiated(Negotiated::Entered {
                transmission,
                export: found.export,
                name,
            })
        }
        Err(why) => Answer::Options(request.refuse(why.refusal, why.message.as_str(), out)),
    }
}

fn export_name<S: Security>(
    request: ExportNameRequest<S>,
    wanted: Wanted,
    out: &mut BytesMut,
) -> Result<Negotiated, Error> {
    let found = match wanted {
        Ok(found) => found,
        Err(Unavailable { refusal, .. }) => {
            return Err(request.refuse(match refusal {
                Refusal::TlsRequired => "the export is available with TLS only",
                Refusal::Unknown => "there is no export of this name",
                _ => "the export cannot be used now",
            }));
        }
    };
    let name = request.name().clone();
    let transmission = request
        .same_export_as_contexts(found.same)
        .accept(&found.info, out);
    Ok(Negotiated::Entered {
        transmission,
        export: found.export,
        name,
    })
}

fn list_meta_context<S: Security>(
    mut request: ListMetaContextRequest<S>,
    wanted: Wanted,
    out: &mut BytesMut,
) -> Options<S> {
    let found = match wanted {
        Ok(found) => found,
        Err(why) => return request.refuse(why.refusal, why.message.as_str(), out),
    };
    let extended = request.mode() == HeaderStyle::Extended;
    let (mut listed, mut left_out) = (false, false);
    for context in found.contexts {
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
    wanted: Wanted,
    out: &mut BytesMut,
) -> Options<S> {
    let found = match wanted {
        Ok(found) => found,
        Err(why) => return request.refuse(why.refusal, why.message.as_str(), out),
    };
    let extended = request.mode() == HeaderStyle::Extended;
    for context in found.contexts {
        // A description that cannot be sent counts as missing: the client goes on with the others.
        if !context.wide || extended {
            request.select(&context.name, out);
        }
    }
    request.done(out)
}
