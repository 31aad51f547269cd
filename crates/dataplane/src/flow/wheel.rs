//! Timer wheel over connections: one list per period of about a second, linked through their cold records.
//!
//! A flow is not moved when it sees a packet; it is looked at when its original time comes, and then either forgotten or put
//! where its time really is (lazy timers, Varghese and Lauck 1987, scheme 6 without cancellation). So a hit costs nothing here,
//! and no scan over the table is ever needed.

use super::{Coarse, Cold, NONE};

/// [`Coarse`] units per period: 2^6, that is 1.07 s.
const PERIOD_SHIFT: u32 = 6;
/// Periods, more than the longest wait (300 s) needs.
const SLOTS: usize = 512;

#[derive(Debug)]
pub(super) struct Wheel {
    heads: Box<[u32; SLOTS]>,
    /// The period that is being worked off; `None` until the first flow or tick sets the clock.
    cursor: Option<u32>,
}

const fn period(time: Coarse) -> u32 {
    time.0 >> PERIOD_SHIFT
}

/// Periods wrap with [`Coarse`]; their difference is exact within 2^26.
const fn behind(cursor: u32, now: u32) -> bool {
    let ahead = now.wrapping_sub(cursor) & (u32::MAX >> PERIOD_SHIFT);
    ahead != 0 && ahead < 1 << 25
}

impl Wheel {
    pub(super) fn new() -> Wheel {
        Wheel {
            heads: Box::new([NONE; SLOTS]),
            cursor: None,
        }
    }

    fn head(&mut self, period: u32) -> Option<&mut u32> {
        self.heads.get_mut(period as usize % SLOTS)
    }

    /// Schedules a flow to be looked at `wait` units after `now`, or a little later.
    pub(super) fn link(&mut self, records: &mut [Cold], index: u32, now: Coarse, wait: u32) {
        self.cursor.get_or_insert(period(now));
        let due = Coarse(
            now.0
                .wrapping_add(wait.min(((SLOTS - 2) as u32) << PERIOD_SHIFT)),
        );
        let Some(head) = self.head(period(due).wrapping_add(1)) else {
            return;
        };
        let Some(record) = records.get_mut(index as usize) else {
            return;
        };
        record.next = core::mem::replace(head, index);
    }

    /// Takes the next flow whose period has begun; `None` when all are worked off.
    pub(super) fn next_due(&mut self, records: &mut [Cold], now: Coarse) -> Option<u32> {
        let today = period(now);
        let mut cursor = *self.cursor.get_or_insert(today);
        // A clock that jumped far ahead need not walk the same lists over and over.
        if today.wrapping_sub(cursor) & (u32::MAX >> PERIOD_SHIFT) > SLOTS as u32
            && behind(cursor, today)
        {
            cursor = today.wrapping_sub(SLOTS as u32);
        }
        loop {
            self.cursor = Some(cursor);
            let head = self.head(cursor)?;
            if let Some(record) = records.get_mut(*head as usize) {
                let index = *head;
                *head = record.next;
                return Some(index);
            }
            if !behind(cursor, today) {
                return None;
            }
            cursor = cursor.wrapping_add(1);
        }
    }
}
