//! An end of a connection, as a stream.

use crate::runtime::{Sim, lock};
use nbd_io::{runtime::Runtime, transport::Transport};
use std::{
    collections::VecDeque,
    io::{self, ErrorKind, IoSlice, IoSliceMut},
    task::{Context, Poll, Waker},
    time::Duration,
};

/// One end of a connection: 0 is the client's, 1 the server's.
#[derive(Debug)]
pub struct End {
    sim: Sim,
    id: usize,
    side: usize,
}

impl End {
    pub(super) fn new(sim: &Sim, id: usize, side: usize) -> Self {
        Self {
            sim: sim.clone(),
            id,
            side,
        }
    }

    /// Number of bytes that may pass now; none means to be polled again.
    fn portion(&self, cx: &Context<'_>) -> usize {
        let chop = lock(&self.sim.net).chop;
        if chop == usize::MAX {
            return chop;
        }
        let portion = self.sim.random(|rng| rng.usize(..=chop));
        if portion == 0 {
            cx.waker().wake_by_ref();
        }
        portion
    }

    fn read(&self, cx: &Context<'_>, bufs: &mut [IoSliceMut<'_>]) -> Poll<io::Result<usize>> {
        let portion = self.portion(cx);
        if portion == 0 {
            return Poll::Pending;
        }
        let now = self.sim.now();
        let mut net = lock(&self.sim.net);
        let connection = &mut net.connections[self.id];
        let reset = connection.ends[self.side].reset;
        if reset.is_some_and(|at| at <= now) {
            return Poll::Ready(Err(ErrorKind::ConnectionReset.into()));
        }
        let way = &mut connection.ways[1 - self.side];
        let mut n = 0;
        for buf in bufs {
            let mut rest = &mut buf[..];
            while !rest.is_empty()
                && n < portion
                && let Some((at, segment)) = way.segments.front_mut()
                && *at <= now
            {
                let len = rest.len().min(portion - n);
                // Reading from a queue in memory does not fail.
                let taken = io::Read::read(segment, &mut rest[..len]).unwrap_or(0);
                if segment.is_empty() {
                    way.segments.pop_front();
                }
                n += taken;
                rest = &mut rest[taken..];
            }
        }
        if n > 0 {
            way.bytes -= n;
            let writer = way.writer.take();
            drop(net);
            self.sim.note_progress();
            writer.into_iter().for_each(Waker::wake);
            return Poll::Ready(Ok(n));
        }
        if way.segments.is_empty() && way.end.is_some_and(|at| at <= now) {
            return Poll::Ready(Ok(0));
        }
        way.reader = Some(cx.waker().clone());
        let next = [way.segments.front().map(|(at, _)| *at), way.end, reset];
        let next = next.into_iter().flatten().filter(|at| *at > now).min();
        self.sim.set_timer(&mut way.arrival, next, cx.waker());
        Poll::Pending
    }

    fn write(&self, cx: &Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let portion = self.portion(cx);
        if portion == 0 {
            return Poll::Pending;
        }
        let latency = self.sim.latency();
        let now = self.sim.now();
        let mut net = lock(&self.sim.net);
        let capacity = net.capacity;
        let connection = &mut net.connections[self.id];
        let end = &connection.ends[self.side];
        let fails = [end.reset, end.unwritable].into_iter().flatten().min();
        if fails.is_some_and(|at| at <= now) {
            return Poll::Ready(Err(ErrorKind::ConnectionReset.into()));
        }
        let is_severed = connection.is_severed;
        let way = &mut connection.ways[self.side];
        if way.end.is_some() {
            return Poll::Ready(Err(ErrorKind::BrokenPipe.into()));
        }
        let room = capacity.saturating_sub(way.bytes).min(portion);
        if room == 0 {
            way.writer = Some(cx.waker().clone());
            self.sim.set_timer(&mut way.failure, fails, cx.waker());
            return Poll::Pending;
        }
        let mut segment = VecDeque::new();
        for buf in bufs {
            let len = buf.len().min(room - segment.len());
            segment.extend(&buf[..len]);
        }
        let n = segment.len();
        way.bytes += n;
        let at = way.last.max(way.stalled).max(now + latency);
        way.last = at;
        // Bytes of a severed connection never arrive.
        let time = match self.side {
            0 => now,
            _ if is_severed => Duration::MAX,
            _ => at,
        };
        let faults = connection
            .wire
            .wrote(self.side, time, segment.iter().copied());
        self.sim.note_progress();
        if !is_severed && n > 0 {
            if let (true, Some(reader)) = (way.segments.is_empty(), &way.reader) {
                self.sim.set_timer(&mut way.arrival, Some(at), reader);
            }
            way.segments.push_back((at, segment));
        }
        let side = ["client", "server"][self.side];
        let faults = faults.into_iter();
        net.faults.extend(
            faults.map(|fault| format!("connection {}: the {side} sends {fault}", self.id)),
        );
        Poll::Ready(Ok(n))
    }

    /// Sends no more bytes, which the peer learns behind the last of them.
    fn end(&self) {
        let at = self.sim.now() + self.sim.latency();
        let mut net = lock(&self.sim.net);
        let connection = &mut net.connections[self.id];
        let is_severed = connection.is_severed;
        let way = &mut connection.ways[self.side];
        if is_severed || way.end.is_some() {
            return;
        }
        let at = way.last.max(way.stalled).max(at);
        way.end = Some(at);
        if let (true, Some(reader)) = (way.segments.is_empty(), &way.reader) {
            self.sim.set_timer(&mut way.arrival, Some(at), reader);
        }
    }
}

impl Drop for End {
    fn drop(&mut self) {
        self.end();
        let now = self.sim.now();
        let at = now + self.sim.latency();
        let mut net = lock(&self.sim.net);
        let connection = &mut net.connections[self.id];
        if connection.ends[self.side].is_dropped {
            return;
        }
        connection.ends[self.side].is_dropped = true;
        connection.ends[self.side].dropped = Some(now);
        if !connection.is_severed {
            let has_unread = !connection.ways[1 - self.side].segments.is_empty();
            let peer = &mut connection.ends[1 - self.side];
            peer.unwritable = Some(at);
            // As with TCP: bytes for a closed socket are answered by a reset, which overtakes bytes
            // that the peer has not read.
            if has_unread && peer.reset.is_none() {
                peer.reset = Some(at);
            }
        }
        drop(net);
        self.sim.wake_connection(self.id);
    }
}

impl Transport for End {
    fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.side == 1 {
            self.sim.note_connection(self.id);
        }
        self.read(cx, bufs)
    }

    fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.write(cx, bufs)
    }

    fn poll_flush(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.end();
        Poll::Ready(Ok(()))
    }
}
