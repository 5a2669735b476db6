use super::*;
use crate::transport::block_on_ready;
use nbd_proto::client;
use std::{
    collections::VecDeque,
    io::{self, IoSlice},
    task::Poll,
};

/// A server that sends one answer after the other, without regard to the questions. Each read gets
/// one of them at most.
#[derive(Debug)]
struct Script {
    says: VecDeque<Vec<u8>>,
    reads: usize,
}

impl Script {
    fn new<const N: usize>(says: [Vec<u8>; N]) -> Self {
        Self {
            says: says.into(),
            reads: 0,
        }
    }

    /// The same after it has greeted.
    fn greeted(self) -> OptionExchange<Self, Plain> {
        let mut script = self;
        script.says.push_front(b"NBDMAGICIHAVEOPT\0\x03".to_vec());
        match block_on_ready(greet(script, client::Config::default())).unwrap() {
            Greeted::FixedNewstyle(exchange) => exchange,
            other => panic!("{other:?}"),
        }
    }
}

impl Transport for Script {
    fn poll_read(
        &mut self,
        _: &mut task::Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
    ) -> Poll<io::Result<usize>> {
        self.reads += 1;
        let Some(said) = self.says.front_mut() else {
            return Poll::Ready(Ok(0));
        };
        let n = bufs[0].len().min(said.len());
        bufs[0][..n].copy_from_slice(&said[..n]);
        said.drain(..n);
        if said.is_empty() {
            self.says.pop_front();
        }
        Poll::Ready(Ok(n))
    }

    fn poll_write(
        &mut self,
        _: &mut task::Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(bufs.iter().map(|buf| buf.len()).sum()))
    }

    fn poll_flush(&mut self, _: &mut task::Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(&mut self, _: &mut task::Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

fn reply(option: OptionCode, kind: u32, data: &[u8]) -> Vec<u8> {
    let mut reply = 0x0003_e889_0455_65a9_u64.to_be_bytes().to_vec();
    let len = u32::try_from(data.len()).unwrap();
    for number in [option.code(), kind, len] {
        reply.extend(number.to_be_bytes());
    }
    reply.extend(data);
    reply
}

fn ack(option: OptionCode) -> Vec<u8> {
    reply(option, 1, &[])
}

/// 1 MiB, with nothing special.
fn granted() -> Vec<u8> {
    let export = [0, 0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0, 1];
    [reply(OptionCode::Go, 3, &export), ack(OptionCode::Go)].concat()
}

#[test]
fn one_read_takes_all_that_answers_an_option() {
    let agreed = ack(OptionCode::StructuredReply);
    let mut exchange = Script::new([agreed, granted()]).greeted();
    block_on_ready(exchange.structured_reply()).unwrap();
    let entered = block_on_ready(exchange.go(Go::default())).unwrap().unwrap();
    assert_eq!(entered.transmission.export().size, 1 << 20);
    // The greeting, and each answer.
    assert_eq!(entered.transport.reads, 3);
}

#[test]
fn a_server_that_goes_on_after_its_last_reply_breaks_the_protocol() {
    // C-026
    let option = OptionCode::StructuredReply;
    let mut exchange = Script::new([[ack(option), ack(option)].concat()]).greeted();
    let error = block_on_ready(exchange.structured_reply()).unwrap_err();
    let NegotiationError::Protocol { source, .. } = error else {
        panic!("{error}");
    };
    assert_eq!(source, Error::AfterLastReply { option });
    assert_eq!(source.rule(), "C-026");
    let over = block_on_ready(exchange.structured_reply()).unwrap_err();
    assert!(matches!(over, NegotiationError::Over), "{over}");

    let exchange = Script::new([[granted(), vec![0]].concat()]).greeted();
    let error = block_on_ready(exchange.go(Go::default())).unwrap_err();
    assert!(
        matches!(error, NegotiationError::Protocol { .. }),
        "{error}"
    );
}

#[test]
fn nothing_behind_the_answer_to_starttls_is_read_before_tls_is() {
    // Bytes in the same segment as the answer, injected or not, are for the TLS handshake.
    let answer = [ack(OptionCode::StartTls), b"TLS".to_vec()].concat();
    let exchange = Script::new([answer]).greeted();
    let mut seen = None;
    let started = block_on_ready(exchange.start_tls(|mut script: Script| {
        seen = script.says.pop_front();
        async { Ok(script) }
    }));
    assert!(started.unwrap().is_ok());
    assert_eq!(seen.unwrap(), b"TLS");
}
