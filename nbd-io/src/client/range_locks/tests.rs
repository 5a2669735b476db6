use super::*;
use proptest::prelude::*;

type Locks = RangeLocks<u32>;

fn leave(locks: &mut Locks, claim: Claim) -> Vec<u32> {
    let mut granted = Vec::new();
    locks.leave(claim, |name| granted.push(*name)).unwrap();
    granted
}

#[test]
fn only_overlapping_ranges_wait_and_in_order() {
    let mut locks = Locks::default();
    let first = locks.enter(0..10, None, 1);
    let second = locks.enter(5..15, None, 2);
    let third = locks.enter(12..20, None, 3);
    let apart = locks.enter(20..30, None, 4);
    assert!(locks.is_held(first) && locks.is_held(apart));
    assert!(!locks.is_held(second));
    assert!(!locks.is_held(third), "behind one that waits");
    assert_eq!(leave(&mut locks, first), [2]);
    assert_eq!(leave(&mut locks, second), [3]);
    assert!(leave(&mut locks, third).is_empty());
    assert!(leave(&mut locks, apart).is_empty());
    assert!(locks.is_empty() && locks.top.is_empty());
}

#[test]
fn a_claim_that_leaves_the_queue_blocks_no_other() {
    let mut locks = Locks::default();
    let first = locks.enter(0..10, None, 1);
    let second = locks.enter(5..15, None, 2);
    let apart = locks.enter(12..13, None, 3);
    let behind = locks.enter(0..20, None, 4);
    assert_eq!(leave(&mut locks, second), [3]);
    assert!(leave(&mut locks, first).is_empty());
    assert!(!locks.is_held(behind));
    assert_eq!(leave(&mut locks, apart), [4]);
}

#[test]
fn claims_of_one_owner_do_not_wait_for_each_other() {
    let mut locks = Locks::default();
    let owner = locks.owner();
    let first = locks.enter(0..10, Some(owner), 1);
    let second = locks.enter(5..15, Some(owner), 2);
    assert!(locks.is_held(first) && locks.is_held(second));
    let other = locks.enter(0..8, None, 3);
    assert!(leave(&mut locks, first).is_empty());
    assert_eq!(leave(&mut locks, second), [3]);
    let third = locks.enter(0..1, Some(owner), 4);
    assert!(!locks.is_held(third), "behind another claim");
    assert!(!locks.is_empty());
    // One that waits only for those of its owner comes with the last of them.
    let fourth = locks.enter(0..5, Some(owner), 5);
    assert!(!locks.is_held(fourth));
    assert_eq!(leave(&mut locks, other), [4, 5]);
}

#[test]
fn nothing_is_linear_in_the_number_of_claims() {
    // Disjoint, all equal, and staggered; left from either end. With quadratic time this would take
    // minutes.
    let ranges: [fn(u64) -> Range<u64>; 3] = [
        |n| n * 512..(n + 1) * 512,
        |_| 0..512,
        |n| n * 100..n * 100 + 512,
    ];
    for range in ranges {
        for newest_first in [false, true] {
            let mut locks = RangeLocks::<()>::default();
            let mut claims: Vec<_> = (0..50_000)
                .map(|n| locks.enter(range(n), None, ()))
                .collect();
            let parts: usize = locks.claims.values().map(|claim| claim.below.len()).sum();
            assert!(parts <= 3 * claims.len(), "{parts}");
            if newest_first {
                claims.reverse();
            }
            for claim in claims {
                locks.leave(claim, |()| {}).unwrap();
            }
            assert!(locks.is_empty() && locks.top.is_empty());
        }
    }
}

/// The same by brute force: it looks at all earlier claims.
struct Naive {
    claim: Claim,
    range: Range<u64>,
    owner: Option<usize>,
}

fn is_held(claims: &[Naive], at: usize) -> bool {
    let Naive { range, owner, .. } = &claims[at];
    !claims[..at].iter().any(|other| {
        let overlaps = other.range.start < range.end && range.start < other.range.end;
        overlaps && (owner.is_none() || other.owner != *owner)
    })
}

proptest! {
    #[test]
    fn it_decides_as_a_brute_force_model_does(
        steps in prop::collection::vec((any::<bool>(), 0..20_u64, 1..12_u64, 0..6_usize, any::<usize>()), 0..120),
    ) {
        let mut locks = RangeLocks::<bool>::default();
        let owners = [locks.owner(), locks.owner()];
        let mut claims: Vec<Naive> = Vec::new();
        for (enters, start, len, who, which) in steps {
            if enters || claims.is_empty() {
                let owner = (who < owners.len()).then_some(who);
                // An owner waits for each before it makes the next.
                let of_owner = |at: &usize| owner.is_some() && claims[*at].owner == owner;
                if (0..claims.len()).filter(of_owner).any(|at| !is_held(&claims, at)) {
                    continue;
                }
                let range = start..start + len;
                let claim = locks.enter(range.clone(), owner.map(|who| owners[who]), false);
                let held = locks.is_held(claim);
                *locks.get_mut(claim).unwrap() = held;
                claims.push(Naive { claim, range, owner });
            } else {
                let gone = claims.remove(which % claims.len());
                locks.leave(gone.claim, |woken| {
                    assert!(!*woken, "it is woken once");
                    *woken = true;
                });
            }
            for at in 0..claims.len() {
                let claim = claims[at].claim;
                prop_assert_eq!(locks.is_held(claim), is_held(&claims, at));
                prop_assert_eq!(locks.get(claim), Some(&locks.is_held(claim)));
            }
            let parts: usize = locks.claims.values().map(|claim| claim.below.len()).sum();
            let above: usize = locks.claims.values().map(|claim| claim.above.len()).sum();
            prop_assert_eq!(parts, above);
        }
        for Naive { claim, .. } in claims {
            locks.leave(claim, |_| {});
        }
        prop_assert!(locks.is_empty() && locks.top.is_empty());
    }
}
