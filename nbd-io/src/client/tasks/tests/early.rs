//! Replies that come before their requests were sent.

use super::{
    engine::limits,
    pipe::pipe,
    server::{Behaviour, enter},
    sim::{Sim, join},
};
use crate::{
    Memory, NamedExports,
    client::{
        Connected, NegotiationConfig, negotiate,
        tasks::{
            alarm::Alarm,
            link::{ConnectionTask, Link, Stream},
            tests::engine::{is_ok, read, write},
        },
    },
    runtime::Tasks,
    transport::{self, write_all},
};
use bytes::BytesMut;
use nbd_proto::ExportName;
use std::sync::Arc;

/// Bytes of a request with simple replies agreed on, and the place of its cookie.
const REQUEST: usize = 28;
const COOKIE: std::ops::Range<usize> = 8..16;

async fn take(stream: &mut Stream, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    let mut n = 0;
    while n < len {
        n += transport::read(stream, &mut bytes[n..]).await.unwrap();
    }
    bytes
}

/// Answers any request with success.
async fn answer(stream: &mut Stream, request: &[u8], data: &[u8]) {
    let mut reply = BytesMut::from(&[0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0][..]);
    reply.extend_from_slice(&request[COOKIE]);
    reply.extend_from_slice(data);
    write_all(stream, &mut reply).await.unwrap();
}

#[test]
fn a_write_that_is_answered_before_its_payload_is_sent_is_sent_whole() {
    // H-019
    let payload: Vec<u8> = (0..100_000_u32).map(|n| (n % 251) as u8).collect();
    let sim = Sim::new(1);
    let (ours, theirs) = pipe(sim.chance());
    let exports = Arc::new(NamedExports::single(Arc::new(Memory::new(1 << 20))));
    let len = payload.len();
    let server = async {
        let entered = enter(theirs, exports, &Behaviour::default()).await.unwrap();
        let mut stream = entered.transport;
        let write = take(&mut stream, REQUEST).await;
        answer(&mut stream, &write, &[]).await;
        let got = take(&mut stream, len).await;
        let read = take(&mut stream, REQUEST).await;
        answer(&mut stream, &read, &[7; 512]).await;
        got
    };
    let client = async {
        let mut target = NegotiationConfig::new(ExportName::default());
        (target.structured_replies, target.extended_headers) = (false, false);
        let ours = ours.capacity(1000);
        let Connected {
            transport,
            transmission,
            ..
        } = negotiate(ours, &target, async |pipe| Ok(pipe))
            .await
            .unwrap();
        let link = Link::new(
            Box::new(transport),
            transmission,
            limits(&sim, None, u64::MAX),
            None,
        );
        let link = Arc::new(link);
        let connection_task = ConnectionTask::new(link.clone(), sim.clone(), Alarm::default());
        sim.spawn(async move { drop(connection_task.await) });
        assert!(is_ok(&write(&link, 0, payload.clone()).await));
        let done = read(&link, 0, 512).await;
        assert!(is_ok(&done));
        assert_eq!(done.sink, [7; 512][..]);
    };
    let (got, ()) = sim.run(join(server, client));
    assert_eq!(got, payload);
}
