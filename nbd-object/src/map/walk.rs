//! A walk over all pages of maps, each once.

use super::{Pages, Root, span};
use crate::{
    Error,
    format::{Kind, ObjectId, Page, Piece},
};
use futures_util::stream::{self, StreamExt};
use std::collections::HashSet;

/// Pages that are got at the same time.
const CONCURRENT: usize = 32;

/// A page's place: the reference to it, and its first block.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub(crate) piece: Piece,
    pub(crate) level: u8,
    pub(crate) first: u64,
}

/// The memory that it takes grows with the number of pages, 40 bytes for each.
#[derive(Debug, Default)]
pub(crate) struct Walk {
    todo: Vec<Place>,
    seen: HashSet<(ObjectId, u32)>,
}

impl Walk {
    /// Goes on with another map, whose pages may be those of earlier ones in part.
    pub(crate) fn begin(&mut self, root: Root) {
        if let (Some(piece), Some(level)) = (root.page, root.levels.checked_sub(1))
            && self.seen.insert(piece.key())
        {
            self.todo.push(Place {
                piece,
                level,
                first: 0,
            });
        }
    }

    /// The next pages; none at the end. Pages below one that cannot be read are left out, and so are
    /// those that were seen before, whose places are in `again`.
    pub(crate) async fn next(
        &mut self,
        pages: &Pages,
        again: &mut Vec<Place>,
    ) -> Vec<(Place, Result<Page, Error>)> {
        let places = self
            .todo
            .split_off(self.todo.len().saturating_sub(CONCURRENT));
        let loads: Vec<_> = places.iter().map(|place| load(pages, *place)).collect();
        let got: Vec<_> = stream::iter(loads).buffered(CONCURRENT).collect().await;
        for (place, page) in &got {
            let (Ok(page), Some(below)) = (page, place.level.checked_sub(1)) else {
                continue;
            };
            for (index, piece) in page.iter() {
                let first = place
                    .first
                    .saturating_add(u64::from(index).saturating_mul(span(below)));
                let child = Place {
                    piece,
                    level: below,
                    first,
                };
                if self.seen.insert(piece.key()) {
                    self.todo.push(child);
                } else {
                    again.push(child);
                }
            }
        }
        got
    }
}

async fn load(pages: &Pages, place: Place) -> (Place, Result<Page, Error>) {
    (place, pages.get(&place.piece, place.level).await)
}

impl Place {
    /// The bytes of the disk below this page.
    pub(crate) fn disk(&self, block_size: u64) -> std::ops::Range<u64> {
        let start = self.first.saturating_mul(block_size);
        start..start.saturating_add(span(self.level).saturating_mul(block_size))
    }

    pub(crate) fn object(&self) -> (Kind, ObjectId) {
        (Kind::Map, self.piece.object)
    }
}
