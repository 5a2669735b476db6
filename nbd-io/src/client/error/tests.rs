use super::*;
use nbd_proto::{
    OptionError,
    wire::{OptionCode, OptionReplyCode},
};
use std::error::Error as _;

fn refused(code: OptionReplyCode, option: OptionCode) -> OptionError {
    OptionError::new(option, code, "not today")
}

fn samples() -> Vec<Error> {
    let late = || io::Error::from(io::ErrorKind::TimedOut);
    let enter = |error| Error::negotiation("enter export \"disk\" of here:10809", error);
    let during = || "the greeting".to_owned();
    let unknown = refused(OptionReplyCode::ErrUnknown, OptionCode::Go);
    let tls = refused(OptionReplyCode::ErrTlsReqd, OptionCode::Go);
    let refuses_tls = refused(OptionReplyCode::ErrPolicy, OptionCode::StartTls);
    let policy = refused(OptionReplyCode::ErrPolicy, OptionCode::List);
    let not_nbd = nbd_proto::Error::NotNbd { got: 7 };
    let not_restored = Lost::NotRestored {
        attempts: 3,
        source: Arc::new(Error::Connect {
            to: "here:10809".into(),
            source: Arc::new(late()),
        }),
    };
    vec![
        Error::Connect {
            to: "here:10809".into(),
            source: Arc::new(io::ErrorKind::ConnectionRefused.into()),
        },
        Error::Connect {
            to: "here:10809".into(),
            source: Arc::new(late()),
        },
        enter(NegotiationError::Refused(unknown)),
        enter(NegotiationError::TlsWanted(tls)),
        enter(NegotiationError::TlsRefused(refuses_tls)),
        enter(NegotiationError::Io {
            during: during(),
            source: late(),
        }),
        enter(NegotiationError::Closed { during: during() }),
        enter(NegotiationError::Protocol {
            during: during(),
            source: not_nbd,
        }),
        Error::negotiation(
            "negotiate with here:10809",
            NegotiationError::Refused(policy),
        ),
        Error::Failed {
            command: Command::Read,
            source: Failure::new(Errno::NoSpc),
        },
        Error::lost(late()),
        Error::lost(not_nbd),
        Error::lost(not_restored),
    ]
}

#[test]
fn an_error_that_is_printed_alone_says_the_step_the_place_the_cause_and_the_remedy() {
    let texts: Vec<_> = samples().iter().map(Error::to_string).collect();
    let expected = [
        "cannot connect to here:10809: connection refused; is the server running, and at this \
         address?",
        "cannot connect to here:10809: timed out; is the host up, does a firewall drop packets, or \
         is the server too busy to accept?",
        "cannot enter export \"disk\" of here:10809: the server refused NBD_OPT_GO with \
         NBD_REP_ERR_UNKNOWN: not today; a list of the server's exports shows their names",
        "cannot enter export \"disk\" of here:10809: the server requires TLS, which is switched off \
         here: the server refused NBD_OPT_GO with NBD_REP_ERR_TLS_REQD: not today; connect with \
         nbds:// or nbds+unix:// in place of nbd:// or nbd+unix://, or by a TLS policy",
        "cannot enter export \"disk\" of here:10809: TLS is required, and the server refuses it: the \
         server refused NBD_OPT_STARTTLS with NBD_REP_ERR_POLICY: not today; without nbds:// or a \
         TLS policy it is used in the clear, if the network can be trusted",
        "cannot enter export \"disk\" of here:10809: the connection failed during the greeting: \
         timed out; is this the port of an NBD server, and does it take one more client from here?",
        "cannot enter export \"disk\" of here:10809: the server closed the connection during the \
         greeting; is this the port of an NBD server, and does it take one more client from here?",
        "cannot enter export \"disk\" of here:10809: the server broke the protocol during the \
         greeting (C-006): expected an NBD server to start with \"NBDMAGIC\", got \
         \"\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x07\"; is this the port of an NBD server?",
        "cannot negotiate with here:10809: the server refused NBD_OPT_LIST with NBD_REP_ERR_POLICY: \
         not today; its configuration does not allow it",
        "NBD_CMD_READ failed: the server failed the command with NBD_ENOSPC",
        "the connection is over: timed out",
        "the connection is over: the server broke the protocol (C-006): expected an NBD server to \
         start with \"NBDMAGIC\", got \"\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x07\"",
        "the connection is over: the connection was lost and not restored (attempts: 3): cannot \
         connect to here:10809: timed out; is the host up, does a firewall drop packets, or is the \
         server too busy to accept?",
    ];
    assert_eq!(texts, expected);
}

#[test]
fn the_sources_of_an_error_are_all_in_its_text_once() {
    for error in samples() {
        let text = error.to_string();
        let mut next = error.source();
        assert!(next.is_some(), "{text}");
        while let Some(source) = next {
            let cause = source.to_string();
            assert_eq!(text.matches(&cause).count(), 1, "{text}: {cause}");
            next = source.source();
        }
    }
}

#[test]
fn the_servers_failure_is_passed_on_and_a_client_error_gets_an_errno_of_ours() {
    let said = Failure {
        message: "a scratch".into(),
        offset: Some(7),
        ..Errno::NoSpc.into()
    };
    let failed = |source: Failure| Error::Failed {
        command: Command::Read,
        source,
    };
    assert_eq!(Failure::from(failed(said.clone())), said);
    for (error, errno) in [
        (failed(Errno::Shutdown.into()), Errno::Io),
        (
            Misuse::ReadOnly {
                command: Command::Write,
            }
            .into(),
            Errno::Inval,
        ),
        (Error::Unflushed, Errno::Io),
        (Error::lost(Lost::Closed), Errno::Io),
    ] {
        let text = error.to_string();
        let failure = Failure::from(error);
        assert_eq!((failure.errno, failure.message.as_str()), (errno, &*text));
    }
}
