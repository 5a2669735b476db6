//! Many requests in flight, as futures of one task.

use nbd_io::{
    client::{Error, tasks::Client},
    runtime::Network,
};
use nbd_proto::CommandFlags;
use std::{future::poll_fn, pin::Pin, task::Poll};

/// A request that is not waited for at once.
#[derive(Clone, Debug)]
pub(crate) enum Request {
    Read {
        offset: u64,
        len: usize,
    },
    Write {
        offset: u64,
        data: Vec<u8>,
        flags: CommandFlags,
    },
    Zeroes {
        offset: u64,
        len: u64,
        flags: CommandFlags,
    },
    Trim {
        offset: u64,
        len: u64,
        flags: CommandFlags,
    },
    Cache {
        offset: u64,
        len: u64,
    },
    Flush,
}

/// The data of a read; empty for other requests.
pub(crate) type Answer = Result<Vec<u8>, Error>;

/// A request in flight, and its number.
type Flying<'a> = (usize, Pin<Box<dyn Future<Output = Answer> + 'a>>);

async fn perform<R: Network>(client: &Client<R>, request: Request) -> Answer {
    let done = match request {
        Request::Read { offset, len } => return Ok(client.read(offset, len).await?.into()),
        Request::Write {
            offset,
            data,
            flags,
        } => client.write_with(data, offset, flags).await,
        Request::Zeroes { offset, len, flags } => client.write_zeroes(offset, len, flags).await,
        Request::Trim { offset, len, flags } => client.trim(offset, len, flags).await,
        Request::Cache { offset, len } => client.cache(offset, len).await,
        Request::Flush => client.flush().await,
    };
    done.map(|()| Vec::new())
}

/// Carries out requests, up to `depth` at once, and answers in their order.
pub(crate) async fn together<R: Network>(
    client: &Client<R>,
    requests: Vec<Request>,
    depth: usize,
) -> Vec<Answer> {
    let mut answers: Vec<Option<Answer>> = requests.iter().map(|_| None).collect();
    let mut requests = requests.into_iter().enumerate();
    let mut flying: Vec<Flying<'_>> = Vec::new();
    poll_fn(|cx| {
        loop {
            let room = depth.saturating_sub(flying.len());
            for (at, request) in requests.by_ref().take(room) {
                flying.push((at, Box::pin(perform(client, request))));
            }
            if flying.is_empty() {
                return Poll::Ready(());
            }
            let before = flying.len();
            flying.retain_mut(|(at, future)| match future.as_mut().poll(cx) {
                Poll::Ready(answer) => {
                    answers[*at] = Some(answer);
                    false
                }
                Poll::Pending => true,
            });
            if flying.len() == before {
                return Poll::Pending;
            }
        }
    })
    .await;
    let answered = answers
        .into_iter()
        .map(|answer| answer.expect("it has landed"));
    answered.collect()
}
