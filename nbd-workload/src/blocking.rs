//! Workloads by the blocking client.

use super::{Measured, Next, PAGE, Progress, Workload};
use nbd_blocking::{
    Client, CommandFlags, Completion, Error, Queue, bytes::Bytes, nbd_proto::client::Cookie,
};
use std::time::Instant;

/// Does a workload on one connection of several, of which the first has the index 0, in this thread.
///
/// # Errors
///
/// When a request fails, which ends the workload.
pub fn blocking(client: &Client, workload: &Workload, index: u32) -> Result<Measured, Error> {
    let progress = Progress::new(workload, client.size(), index);
    if workload.depth == 1 {
        one_at_a_time(client, workload, progress)
    } else {
        many(client, workload, progress)
    }
}

/// Memory for a request, at the start of a page.
fn aligned(memory: &mut Vec<u8>, len: usize) -> &mut [u8] {
    memory.resize(len + PAGE, 0x5a);
    let start = memory.as_ptr().align_offset(PAGE).min(PAGE);
    &mut memory[start..start + len]
}

fn one_at_a_time(
    client: &Client,
    workload: &Workload,
    mut progress: Progress,
) -> Result<Measured, Error> {
    let mut memory = Vec::new();
    let buffer = aligned(&mut memory, workload.len());
    let mut begun = None;
    while let Some((Next { offset, writes }, now)) = progress.next(begun) {
        begun = Some(now);
        if writes {
            client.write_all_at(buffer, offset)?;
        } else {
            client.read_exact_at(buffer, offset)?;
        }
    }
    Ok(progress.finish())
}

/// Keeps a queue full. The clock is read once for all that came together.
fn many(client: &Client, workload: &Workload, progress: Progress) -> Result<Measured, Error> {
    let depth = usize::try_from(workload.depth).unwrap_or(usize::MAX);
    let mut flight = Flight {
        queue: client.queue(),
        buffers: (0..depth).map(|_| vec![0; workload.len()]).collect(),
        payload: Bytes::from(vec![0x5a; workload.len()]),
        begun: vec![None; depth],
        displaced: Vec::new(),
        progress,
    };
    flight.progress.tick();
    for _ in 0..depth {
        flight.submit()?;
    }
    while let Some(completion) = flight.queue.complete()? {
        flight.progress.tick();
        let before = flight.progress.requests;
        flight.take(completion)?;
        while let Some(completion) = flight.queue.next_ready() {
            flight.take(completion)?;
        }
        for _ in before..flight.progress.requests {
            flight.submit()?;
        }
    }
    Ok(flight.progress.finish())
}

/// The requests of a queue.
struct Flight {
    queue: Queue,
    buffers: Vec<Vec<u8>>,
    payload: Bytes,
    /// When each was submitted, by the slots of their cookies.
    begun: Vec<Option<(Cookie, Instant)>>,
    /// The same of those that were answered, and not taken before another one had their slot.
    displaced: Vec<(Cookie, Instant)>,
    progress: Progress,
}

impl Flight {
    /// Submits one more, if there is one.
    #[inline(always)]
    fn submit(&mut self) -> Result<(), Error> {
        let Some((Next { offset, writes }, now)) = self.progress.next(None) else {
            return Ok(());
        };
        let cookie = if writes {
            self.queue
                .write(self.payload.clone(), offset, CommandFlags::NONE)?
        } else {
            self.queue
                .read(self.buffers.pop().unwrap_or_default(), offset)?
        };
        let displaced = match self.begun.get_mut(cookie.slot()) {
            Some(begun) => begun.replace((cookie, now)),
            // The connection has more slots while others use it, too.
            None => Some((cookie, now)),
        };
        self.displaced.extend(displaced);
        Ok(())
    }

    /// Takes one that is done.
    #[inline(always)]
    fn take(&mut self, completion: Completion) -> Result<(), Error> {
        completion.result?;
        if let Some(begun) = self.begun(completion.cookie) {
            self.progress.done(begun);
        }
        if let Some(buffer) = completion.buffer {
            self.buffers.push(buffer);
        }
        Ok(())
    }

    /// When a request was submitted, to be asked once.
    fn begun(&mut self, cookie: Cookie) -> Option<Instant> {
        if let Some(slot) = self.begun.get_mut(cookie.slot())
            && let Some((_, begun)) = slot.take_if(|(owner, _)| *owner == cookie)
        {
            return Some(begun);
        }
        let place = self
            .displaced
            .iter()
            .position(|(owner, _)| *owner == cookie)?;
        Some(self.displaced.swap_remove(place).1)
    }
}
