//! Tasks that come late, and timers that end late.

use super::{Core, Group, Sim, Slot};
use std::{collections::BTreeSet, time::Duration};

/// Tasks that are not polled, however often they are woken.
#[derive(Clone, Copy, Debug)]
pub struct Hold {
    group: Group,
    /// `None` for all tasks of the group, and those that it starts.
    task: Option<u64>,
    number: u64,
}

impl Core {
    pub(super) fn is_held(&self, id: u64, slot: &Slot) -> bool {
        let holds =
            |hold: &Hold| hold.group == slot.group && hold.task.is_none_or(|task| task == id);
        self.holds.iter().any(holds)
    }

    /// Whether a task waits for a poll that it may not have yet.
    fn is_waiting(&self, id: u64, slot: &Slot) -> bool {
        slot.is_woken && slot.future.is_some() && self.is_held(id, slot)
    }

    fn waiting(&self) -> Vec<u64> {
        let all = self.tasks.iter();
        let waiting = all.filter(|(id, slot)| self.is_waiting(**id, slot));
        waiting.map(|(id, _)| *id).collect()
    }

    fn hold(&mut self, group: Group, task: Option<u64>) -> Hold {
        let number = self.number();
        let hold = Hold {
            group,
            task,
            number,
        };
        self.holds.push(hold);
        self.held.push((hold, self.now, None));
        let waiting = self.waiting();
        self.ready.retain(|task| !waiting.contains(task));
        hold
    }

    /// When a timer ends that is set now. A coarse one ends with a tick of the clock.
    pub(super) fn end_of(&self, time: Duration) -> Duration {
        let end = self.now.saturating_add(time);
        match u64::try_from(self.tick.as_nanos()) {
            Ok(tick) if tick > 0 => {
                // All times of a simulation are short.
                let nanos = u64::try_from(end.as_nanos()).unwrap_or(u64::MAX);
                Duration::from_nanos((nanos / tick).saturating_add(1).saturating_mul(tick))
            }
            _ => end,
        }
    }
}

impl Sim {
    /// Holds up a task of a client or a server, or all tasks of its process. `None` if there is
    /// none.
    #[must_use]
    pub fn hold_up(&self, whole_process: bool) -> Option<Hold> {
        let mut core = self.lock();
        let mut groups: BTreeSet<_> = core.tasks.values().map(|slot| slot.group).collect();
        // The one that makes the faults.
        groups.remove(&Group(0));
        let groups: Vec<_> = groups.into_iter().collect();
        let group = core.rng.choice(groups)?;
        let tasks = core.tasks.iter().filter(|(_, slot)| slot.group == group);
        let tasks: Vec<_> = tasks.map(|(id, _)| *id).collect();
        let task = core.rng.choice(tasks)?;
        Some(core.hold(group, (!whole_process).then_some(task)))
    }

    /// Holds up all tasks of a process, and those that it starts.
    #[must_use]
    pub fn hold_up_process(&self, group: Group) -> Hold {
        self.lock().hold(group, None)
    }

    /// Lets tasks go on. Returns whether any was woken meanwhile.
    pub fn release(&self, hold: Hold) -> bool {
        let mut core = self.lock();
        let mut released = core.waiting();
        core.holds.retain(|other| other.number != hold.number);
        let now = core.now;
        let mut held = core.held.iter_mut();
        if let Some((.., end)) = held.find(|(other, ..)| other.number == hold.number) {
            *end = Some(now);
        }
        let held = core.waiting();
        released.retain(|task| !held.contains(task));
        core.ready.extend(&released);
        !released.is_empty()
    }

    /// For how long the process of this handle, or a task of it, has been held up since a time, all hold-ups
    /// together.
    #[must_use]
    pub fn held_since(&self, since: Duration) -> Duration {
        let core = self.lock();
        let own = core
            .held
            .iter()
            .filter(|(hold, ..)| hold.group == self.group);
        own.map(|(_, begin, end)| {
            let end = end.unwrap_or(core.now);
            end.saturating_sub(since.max(*begin))
        })
        .sum()
    }
}
