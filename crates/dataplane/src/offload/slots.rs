//! Which flows have rules: a bounded table of places, and a note per flow entry.
//!
//! The packet path knows nothing of it. A flow that is new, or decided anew, is found by going round the flow table; one that has ended, or is to be
//! treated differently, by going round the places. Both rounds are cut into portions, so no packet waits for long.

use super::{FlowId, OFFLOADED_MAX, OffloadCounters, Rule};
use crate::flow::NONE;
use crate::flow::key::FlowKey;

/// What is noted about a flow entry.
#[derive(Clone, Copy, Debug)]
struct Note {
    /// Its place, or [`NONE`].
    slot: u32,
    /// The state in which it was last found to stay in software; see [`Slots::is_judged`].
    judged: u32,
}

impl Note {
    const BLANK: Note = Note {
        slot: NONE,
        judged: 0,
    };
}

/// A flow with rules.
#[derive(Clone, Debug)]
pub(crate) struct Slot {
    pub entry: u32,
    pub key: FlowKey,
    pub rules: Vec<Rule>,
    generation: u32,
    is_used: bool,
}

#[derive(Debug)]
pub(crate) struct Slots {
    notes: Vec<Note>,
    slots: Vec<Slot>,
    free: Vec<u32>,
    /// Where both rounds go on.
    pub next_entry: u32,
    pub next_slot: u32,
    /// Places still to be looked at because the tables have changed, and the epoch they are checked against.
    pub left: u32,
    pub epoch: u32,
    pub counters: OffloadCounters,
}

impl Slots {
    pub(crate) const fn new() -> Slots {
        Slots {
            notes: Vec::new(),
            slots: Vec::new(),
            free: Vec::new(),
            next_entry: 0,
            next_slot: 0,
            left: 0,
            epoch: 0,
            counters: OffloadCounters::ZERO,
        }
    }

    /// Places there have been.
    pub(crate) fn len(&self) -> u32 {
        self.slots.len() as u32
    }

    pub(crate) fn has_room(&self) -> bool {
        !self.free.is_empty() || self.slots.len() < OFFLOADED_MAX
    }

    /// A place in use.
    pub(crate) fn at(&self, slot: u32) -> Option<&Slot> {
        self.slots.get(slot as usize).filter(|slot| slot.is_used)
    }

    /// The same, if it is still that flow's.
    pub(crate) fn of(&self, flow: FlowId) -> Option<&Slot> {
        self.at(flow.slot)
            .filter(|slot| slot.generation == flow.generation)
    }

    pub(crate) fn id(&self, slot: u32) -> Option<FlowId> {
        let generation = self.at(slot)?.generation;
        Some(FlowId { slot, generation })
    }

    /// Whether a flow entry has a place.
    pub(crate) fn has(&self, entry: u32) -> bool {
        self.notes
            .get(entry as usize)
            .is_some_and(|note| note.slot != NONE)
    }

    /// Whether an entry was found to stay in software when its state was `state`, which is not zero.
    pub(crate) fn is_judged(&self, entry: u32, state: u32) -> bool {
        self.notes
            .get(entry as usize)
            .is_some_and(|note| note.judged == state)
    }

    pub(crate) fn judge(&mut self, entry: u32, state: u32) {
        self.note(entry).judged = state;
    }

    fn note(&mut self, entry: u32) -> &mut Note {
        let index = entry as usize;
        if self.notes.len() <= index {
            self.notes.resize(index + 1, Note::BLANK);
        }
        #[expect(
            clippy::indexing_slicing,
            reason = "the line above makes the list longer than the index"
        )]
        &mut self.notes[index]
    }

    /// The name that the next flow to be [`Slots::take`]n gets.
    pub(crate) fn next_id(&self) -> FlowId {
        let slot = self.free.last().copied().unwrap_or(self.len());
        let generation = self
            .slots
            .get(slot as usize)
            .map_or(1, |slot| slot.generation);
        FlowId { slot, generation }
    }

    /// Gives a flow the place that [`Slots::next_id`] named.
    pub(crate) fn take(&mut self, entry: u32, key: FlowKey, rules: Vec<Rule>) {
        let FlowId { slot, generation } = self.next_id();
        let taken = Slot {
            entry,
            key,
            rules,
            generation,
            is_used: true,
        };
        match self.slots.get_mut(slot as usize) {
            Some(place) => {
                self.free.pop();
                *place = taken;
            }
            None => self.slots.push(taken),
        }
        self.note(entry).slot = slot;
        self.counters.flows += 1;
    }

    /// Frees a place.
    pub(crate) fn leave(&mut self, slot: u32) {
        let Some(place) = self.slots.get_mut(slot as usize) else {
            return;
        };
        if !core::mem::replace(&mut place.is_used, false) {
            return;
        }
        place.generation = place.generation.wrapping_add(1);
        place.rules = Vec::new();
        let entry = place.entry;
        self.free.push(slot);
        self.note(entry).slot = NONE;
        self.counters.flows -= 1;
    }
}
