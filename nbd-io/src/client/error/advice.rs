//! Advice to users, appended to errors.

use crate::client::NegotiationError;
use nbd_proto::{Error, wire::OptionReplyCode};
use std::io;

/// Advice for a server that cannot be reached, to be put after the error.
pub(super) fn on_connecting(error: &io::Error) -> &'static str {
    match error.kind() {
        // vsock has the last one for a port without a server.
        io::ErrorKind::ConnectionRefused
        | io::ErrorKind::NotFound
        | io::ErrorKind::ConnectionReset => "; is the server running, and at this address?",
        io::ErrorKind::PermissionDenied => "; may this user connect to it, and run it?",
        io::ErrorKind::TimedOut => {
            "; is the host up, does a firewall drop packets, or is the server too busy to accept?"
        }
        io::ErrorKind::NetworkUnreachable | io::ErrorKind::HostUnreachable => {
            "; is there a network, and a route to this host?"
        }
        _ => "",
    }
}

/// Advice for a step of the negotiation that fails, to be put after the error.
pub(super) fn on_negotiation(error: &NegotiationError) -> &'static str {
    match error {
        NegotiationError::Refused(refusal) => on_refusal(refusal.code),
        NegotiationError::TlsWanted(_) => {
            "; connect with nbds:// or nbds+unix:// in place of nbd:// or nbd+unix://, or by a TLS \
             policy"
        }
        NegotiationError::TlsRefused(_) => {
            "; without nbds:// or a TLS policy it is used in the clear, if the network can be trusted"
        }
        NegotiationError::Protocol {
            source: Error::NotNbd { .. } | Error::UnknownStyle { .. },
            ..
        } => "; is this the port of an NBD server?",
        NegotiationError::Closed { during } | NegotiationError::Io { during, .. }
            if during == super::super::exchange::GREETING =>
        {
            "; is this the port of an NBD server, and does it take one more client from here?"
        }
        NegotiationError::NoExportNames { .. } => "; ask for the default export",
        _ => "",
    }
}

fn on_refusal(code: OptionReplyCode) -> &'static str {
    match code {
        OptionReplyCode::ErrPolicy => "; its configuration does not allow it",
        OptionReplyCode::ErrUnknown => "; a list of the server's exports shows their names",
        OptionReplyCode::ErrShutdown => "; it shuts down: try again later",
        OptionReplyCode::ErrTlsReqd => "; it has to be asked inside TLS",
        OptionReplyCode::ErrUnsup => "; the server does not know this option",
        _ => "",
    }
}
