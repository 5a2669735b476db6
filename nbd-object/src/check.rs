//! The check of a disk: everything that it reaches is read and compared with its checksum.

use crate::{
    Damage, Error, Location, Options,
    format::{Head, Kind, ObjectId, Page, Piece, segment},
    map::{Pages, Root, Walk},
    records::Records,
    store::Objects,
};
use futures_util::stream::{self, StreamExt};
use std::{collections::HashSet, sync::Arc};

/// The result of a check.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Report {
    /// Pages of the map that were read.
    pub pages: u64,
    /// Records that were read.
    pub records: u64,
    /// Their stored bytes.
    pub bytes: u64,
    /// Objects that are referred to.
    pub objects: u64,
    /// The number of damages.
    pub damaged: u64,
    /// The first damages that were found, up to 10,000 of them.
    pub damages: Vec<Damage>,
}

/// Limit of damages that are kept.
const KEPT: usize = 10_000;

/// Leaves whose records are read at the same time.
const CONCURRENT: usize = 4;

impl Report {
    fn add(&mut self, damage: Damage) {
        self.damaged += 1;
        if self.damages.len() < KEPT {
            self.damages.push(damage);
        }
    }
}

struct Check {
    objects: Arc<Objects>,
    pages: Pages,
    records: Records,
    head: Head,
    seen: HashSet<(Kind, ObjectId)>,
    report: Report,
}

impl Location {
    /// Reads everything that the disk, or a snapshot, refers to, and compares it with its checksums;
    /// checks the map, too. The disk may be open meanwhile, if garbage is not collected.
    ///
    /// # Errors
    ///
    /// When the store fails. Damages are no errors; they are in the report.
    pub async fn check(&self, snapshot: Option<&str>, options: &Options) -> Result<Report, Error> {
        let objects = self.objects(options);
        let head = match self.any_head(&objects, snapshot).await {
            Ok(head) => head,
            Err(Error::Damaged(damage)) => {
                let mut report = Report::default();
                report.add(damage);
                return Ok(report);
            }
            Err(error) => return Err(error),
        };
        let block_size = usize::try_from(head.block_size()).expect("a block is small");
        // The store is checked, and no cache.
        let past = options.clone().cache_size(0).local_cache(None);
        let mut check = Check {
            pages: Pages::new(objects.clone(), 0),
            records: Records::new(objects.clone(), &past, block_size),
            objects,
            head,
            seen: HashSet::new(),
            report: Report::default(),
        };
        check.run().await?;
        check.report.objects = check.seen.len() as u64;
        Ok(check.report)
    }
}

impl Check {
    async fn run(&mut self) -> Result<(), Error> {
        let block_size = self.head.block_size();
        let mut walk = Walk::default();
        walk.begin(Root::from(&self.head));
        loop {
            let mut again = Vec::new();
            let some = walk.next(&self.pages, &mut again).await;
            if some.is_empty() {
                return Ok(());
            }
            for place in again {
                let detail = "two places of the map refer to this page";
                self.found(
                    self.objects
                        .damage(Kind::Map, &place.piece, detail)
                        .at(place.disk(block_size)),
                )?;
            }
            let mut leaves = Vec::new();
            for (place, page) in some {
                self.header(Kind::Map, place.piece.object).await?;
                match page {
                    Ok(page) => {
                        self.report.pages += 1;
                        if place.level == 0 {
                            leaves.push((place.first, page));
                        }
                    }
                    Err(error) => self.found(error.at(place.disk(block_size)))?,
                }
            }
            for some in leaves.chunks(CONCURRENT) {
                self.leaves(some).await?;
            }
        }
    }

    async fn leaves(&mut self, leaves: &[(u64, Page)]) -> Result<(), Error> {
        let block_size = self.head.block_size();
        let mut wanted: Vec<Vec<(u64, Piece)>> = Vec::new();
        for (first, page) in leaves {
            let slots = page
                .iter()
                .map(|(index, piece)| (first.saturating_add(u64::from(index)), piece));
            wanted.push(slots.collect());
        }
        for (block, piece) in wanted.iter().flatten() {
            self.header(Kind::Segment, piece.object).await?;
            if *block >= self.head.blocks() {
                self.found(self.objects.damage(
                    Kind::Segment,
                    piece,
                    "a block behind the end of the disk has a record",
                ))?;
            }
            self.report.records += 1;
            self.report.bytes += u64::from(piece.len);
        }
        let records = &self.records;
        let jobs: Vec<_> = wanted.iter().map(|some| records.verify(some)).collect();
        let results: Vec<_> = stream::iter(jobs).buffered(CONCURRENT).collect().await;
        for (block, error) in results.into_iter().flatten() {
            let start = block.saturating_mul(block_size);
            self.found(error.at(start..start.saturating_add(block_size)))?;
        }
        Ok(())
    }

    /// Checks the first bytes of an object, once.
    async fn header(&mut self, kind: Kind, id: ObjectId) -> Result<(), Error> {
        if !self.seen.insert((kind, id)) {
            return Ok(());
        }
        let range = 0..u64::from(segment::HEADER);
        let error = match self.objects.get_range(kind, id, range.clone()).await {
            Ok(bytes) if bytes == segment::header(id) => return Ok(()),
            Ok(_) => Error::Damaged(Damage {
                object: self.objects.path(&id.name(kind)).to_string(),
                range,
                disk: None,
                detail: "the header is not that of this object".into(),
            }),
            Err(error) => error,
        };
        self.found(error)
    }

    /// Adds a damage to the report; other errors end the check.
    fn found(&mut self, error: Error) -> Result<(), Error> {
        match error {
            Error::Damaged(damage) => self.report.add(damage),
            error if error.is_missing_object() => {
                if let Error::Store { object, .. } = error {
                    self.report.add(Damage {
                        object,
                        range: 0..0,
                        disk: None,
                        detail: "the object is missing".into(),
                    });
                }
            }
            error => return Err(error),
        }
        Ok(())
    }
}
