//! Changes of the same bytes, first come first served.
//!
//! This machine has no lock, no waker, no thread and no clock; a driver attaches to a claim the
//! handle that it needs to wake the owner.
//!
//! ```text
//!  newest   ┌── C ───────┐        top: A, C, B
//!           │            ├─ B ─┐
//!      ┌─ A ┴───────┐────┴─────┘  C waits for A and for B, which waits for A nowhere
//!  oldest └─────────┘
//! ```
//!
//! Claims lie on each other like sheets of paper. Each knows the claims directly below and above
//! it, part by part, so that entering and leaving takes logarithmic time for each of these parts
//! and nothing for all other claims. A claim that leaves from the middle lets those above it down
//! on those below it. The parts never become more by that, so that all claims together have no more
//! than a few parts each.

#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, ops::Range};

/// Claims to ranges, in the order in which they came. A claim holds its range if all that overlap
/// it and came before are gone or have the same owner. `T` is a driver's attachment to a claim.
#[derive(Debug)]
pub struct RangeLocks<T> {
    next: u64,
    claims: BTreeMap<u64, Entry<T>>,
    /// The newest claim to each byte.
    top: Parts,
}

/// Names a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim(u64);

/// A holder of claims, which do not wait for each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner(u64);

/// Parts of ranges that do not overlap, by their starts: where they end, and whose they are.
type Parts = BTreeMap<u64, (u64, u64)>;

#[derive(Debug)]
struct Entry<T> {
    range: Range<u64>,
    owner: Owner,
    /// The earlier claims under it.
    below: Parts,
    /// The later claims on top of it.
    above: Parts,
    /// Number of parts below it that it has to wait for: those of other owners, and those that are
    /// not held themselves.
    waits: usize,
    is_held: bool,
    attached: T,
}

impl<T> Default for RangeLocks<T> {
    fn default() -> Self {
        Self {
            next: 0,
            claims: BTreeMap::new(),
            top: Parts::new(),
        }
    }
}

impl<T> RangeLocks<T> {
    const fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// An owner of several claims that do not wait for each other, as long as each is held before
    /// the next one is made.
    pub const fn owner(&mut self) -> Owner {
        Owner(self.number())
    }

    /// Number of claims.
    #[must_use]
    pub fn len(&self) -> usize {
        self.claims.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.claims.is_empty()
    }

    /// Claims a range, behind all that overlap it. Without an owner the claim is by itself.
    pub fn enter(&mut self, range: Range<u64>, owner: Option<Owner>, attached: T) -> Claim {
        let number = self.number();
        let range = range.start..range.end.max(range.start);
        let entry = Entry {
            range: range.clone(),
            owner: owner.unwrap_or(Owner(number)),
            below: Parts::new(),
            above: Parts::new(),
            waits: 0,
            is_held: false,
            attached,
        };
        self.claims.insert(number, entry);
        for (start, (end, below)) in cut(&mut self.top, &range) {
            self.lay(number, below, start..end);
        }
        put(&mut self.top, range, number);
        self.grant(number, &mut |_| {});
        Claim(number)
    }

    /// Whether a claim holds its range.
    #[must_use]
    pub fn is_held(&self, claim: Claim) -> bool {
        let entry = self.claims.get(&claim.0);
        entry.is_some_and(|entry| entry.is_held)
    }

    /// The attachment of a claim, if the claim is there.
    #[must_use]
    pub fn get(&self, claim: Claim) -> Option<&T> {
        self.claims.get(&claim.0).map(|entry| &entry.attached)
    }

    /// The attachment of a claim, if the claim is there.
    pub fn get_mut(&mut self, claim: Claim) -> Option<&mut T> {
        let entry = self.claims.get_mut(&claim.0);
        entry.map(|entry| &mut entry.attached)
    }

    /// Claims that a claim lies directly on, some perhaps several times.
    pub fn before(&self, claim: Claim) -> impl Iterator<Item = Claim> + '_ {
        let entry = self.claims.get(&claim.0);
        let parts = entry.into_iter().flat_map(|entry| entry.below.values());
        parts.map(|(_, below)| Claim(*below))
    }

    /// Claims that lie directly on a claim, some perhaps several times.
    pub fn after(&self, claim: Claim) -> impl Iterator<Item = Claim> + '_ {
        let entry = self.claims.get(&claim.0);
        let parts = entry.into_iter().flat_map(|entry| entry.above.values());
        parts.map(|(_, above)| Claim(*above))
    }

    /// Ends a claim, held or not. Returns its attachment, if it was there; `granted` is given the
    /// attachment of each that holds its range from now on.
    pub fn leave(&mut self, claim: Claim, mut granted: impl FnMut(&mut T)) -> Option<T> {
        let Claim(number) = claim;
        let mut gone = self.claims.remove(&number)?;
        let mut freed = Vec::new();
        for (start, (_, above)) in &gone.above {
            if let Some(entry) = self.claims.get_mut(above) {
                entry.below.remove(start);
                entry.waits -= usize::from(entry.owner != gone.owner || !gone.is_held);
                freed.push(*above);
            }
        }
        for (start, (_, below)) in &gone.below {
            if let Some(entry) = self.claims.get_mut(below) {
                entry.above.remove(start);
            }
        }
        // Those above come down on those below.
        for (start, (end, above)) in &gone.above {
            for (start, (end, below)) in cut(&mut gone.below, &(*start..*end)) {
                self.lay(*above, below, start..end);
            }
        }
        // Where no claim lay on it, the claims under it are uncovered.
        let own = self.top.range(gone.range.clone());
        let own = own.filter(|(_, (_, top))| *top == number);
        let own: Vec<u64> = own.map(|(start, _)| *start).collect();
        for start in &own {
            self.top.remove(start);
        }
        for (start, (end, below)) in gone.below {
            put(&mut self.top, start..end, below);
        }
        freed.dedup();
        for number in freed {
            self.grant(number, &mut granted);
        }
        Some(gone.attached)
    }

    /// Lays a claim on another one in one part.
    fn lay(&mut self, above: u64, below: u64, part: Range<u64>) {
        let Some(lower) = self.claims.get_mut(&below) else {
            return;
        };
        lower.above.insert(part.start, (part.end, above));
        let (owner, is_held) = (lower.owner, lower.is_held);
        if let Some(upper) = self.claims.get_mut(&above) {
            upper.below.insert(part.start, (part.end, below));
            upper.waits += usize::from(upper.owner != owner || !is_held);
        }
    }

    /// Grants a claim if it has nothing to wait for, and with it those of the same owner that wait
    /// only for this one.
    fn grant(&mut self, number: u64, granted: &mut impl FnMut(&mut T)) {
        let mut candidates = vec![number];
        while let Some(number) = candidates.pop() {
            let Some(entry) = self.claims.get_mut(&number) else {
                continue;
            };
            if entry.waits > 0 || entry.is_held {
                continue;
            }
            entry.is_held = true;
            granted(&mut entry.attached);
            let owner = entry.owner;
            let above: Vec<u64> = entry.above.values().map(|(_, above)| *above).collect();
            for number in above {
                if let Some(entry) = self.claims.get_mut(&number)
                    && entry.owner == owner
                {
                    entry.waits -= 1;
                    candidates.push(number);
                }
            }
        }
    }
}

/// Takes out the parts inside a range, and leaves the others.
fn cut(parts: &mut Parts, range: &Range<u64>) -> Vec<(u64, (u64, u64))> {
    if range.is_empty() {
        return Vec::new();
    }
    for bound in [range.start, range.end] {
        if let Some((_, part)) = parts.range_mut(..bound).next_back()
            && part.0 > bound
        {
            let rest = *part;
            part.0 = bound;
            parts.insert(bound, rest);
        }
    }
    let inside = parts.range(range.clone());
    let inside: Vec<_> = inside.map(|(start, part)| (*start, *part)).collect();
    for (start, _) in &inside {
        parts.remove(start);
    }
    inside
}

/// Puts a part where there is none, together with its neighbours if they are the same.
fn put(parts: &mut Parts, mut range: Range<u64>, number: u64) {
    if range.is_empty() {
        return;
    }
    if let Some((start, part)) = parts.range(..range.start).next_back()
        && *part == (range.start, number)
    {
        range.start = *start;
    }
    if let Some((end, after)) = parts.get(&range.end).copied()
        && after == number
    {
        parts.remove(&range.end);
        range.end = end;
    }
    parts.insert(range.start, (range.end, number));
}
