//! Recognition of sequential readers.

use std::ops::Range;

/// Readers that are kept in mind.
const STREAMS: usize = 16;

/// Requests of one reader may overtake each other by as much.
const SLACK: u64 = 512 << 10;

/// The first amount that is got ahead.
const FIRST: u64 = 512 << 10;

#[derive(Debug, Default)]
pub(crate) struct Streams(Vec<Stream>);

#[derive(Debug)]
struct Stream {
    /// The end of the furthest read.
    end: u64,
    /// The end of the bytes that were got ahead.
    ahead: u64,
    window: u64,
    hits: u32,
}

impl Streams {
    /// Takes note of a read, and says which bytes to get ahead of the next ones.
    pub(crate) fn note(&mut self, range: &Range<u64>, limit: u64) -> Option<Range<u64>> {
        if limit == 0 {
            return None;
        }
        let near = |stream: &Stream| range.start.abs_diff(stream.end) <= SLACK;
        let Some(at) = self.0.iter().position(near) else {
            self.0.truncate(STREAMS - 1);
            let new = Stream {
                end: range.end,
                ahead: range.end,
                window: FIRST,
                hits: 0,
            };
            self.0.insert(0, new);
            return None;
        };
        let mut stream = self.0.remove(at);
        stream.hits += 1;
        stream.end = stream.end.max(range.end);
        stream.ahead = stream.ahead.max(stream.end);
        let mut wanted = None;
        let left = stream.ahead - stream.end;
        if stream.hits >= 2 && left <= stream.window / 2 {
            stream.window = (stream.window * 2).min(limit);
            let until = stream.end.saturating_add(stream.window);
            wanted = (stream.ahead < until).then_some(stream.ahead..until);
            stream.ahead = stream.ahead.max(until);
        }
        self.0.insert(0, stream);
        wanted
    }
}
