//! A bounded queue between two packet threads that neither blocks nor allocates: one sender, one receiver.
//!
//! Items are *swapped*, not moved: the sender gets back what was in the slot, an empty buffer to go on with, and so does the receiver.
#![allow(
    unsafe_code,
    reason = "slots are shared by two threads, each of which owns them in turn"
)]

use std::cell::UnsafeCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Own cache line, so that the two ends do not slow each other down.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Padded(AtomicUsize);

struct Shared<T> {
    slots: Box<[UnsafeCell<T>]>,
    /// Items ever taken out. Written by the receiver only.
    head: Padded,
    /// Items ever put in. Written by the sender only.
    tail: Padded,
}

// SAFETY: a slot is accessed by the sender only while `tail - head < slots` puts it outside of the queue, and by the receiver only while it
// is inside; both counters are published with release and read with acquire. The items themselves may change threads (`T: Send`).
unsafe impl<T: Send> Sync for Shared<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Send for Shared<T> {}

/// The end that puts items in.
pub struct Sender<T>(Arc<Shared<T>>);

/// The end that takes items out.
pub struct Receiver<T>(Arc<Shared<T>>);

impl<T> std::fmt::Debug for Sender<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sender").finish_non_exhaustive()
    }
}

impl<T> std::fmt::Debug for Receiver<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Receiver").finish_non_exhaustive()
    }
}

/// A queue for up to `slots_max` items, at least one.
#[must_use]
pub fn ring<T: Default>(slots_max: usize) -> (Sender<T>, Receiver<T>) {
    let slots = (0..slots_max.max(1)).map(|_| UnsafeCell::new(T::default()));
    let shared = Arc::new(Shared {
        slots: slots.collect(),
        head: Padded::default(),
        tail: Padded::default(),
    });
    (Sender(Arc::clone(&shared)), Receiver(shared))
}

impl<T> Sender<T> {
    /// Puts the item in and leaves what was in the slot; false (and unchanged) if the queue is full.
    #[must_use]
    pub fn push(&mut self, item: &mut T) -> bool {
        let tail = self.0.tail.0.load(Ordering::Relaxed);
        let head = self.0.head.0.load(Ordering::Acquire);
        if tail.wrapping_sub(head) >= self.0.slots.len() {
            return false;
        }
        let Some(slot) = self.0.slots.get(tail % self.0.slots.len()) else {
            return false;
        };
        // SAFETY: the slot is outside of the queue: the receiver does not touch it before `tail` is published below, and there is
        // no other sender (`&mut self`, not clonable).
        std::mem::swap(unsafe { &mut *slot.get() }, item);
        self.0.tail.0.store(tail.wrapping_add(1), Ordering::Release);
        true
    }
}

impl<T> Receiver<T> {
    /// Takes the oldest item out and leaves `item` in its place; false (and unchanged) if the queue is empty.
    #[must_use]
    pub fn pop(&mut self, item: &mut T) -> bool {
        let head = self.0.head.0.load(Ordering::Relaxed);
        let tail = self.0.tail.0.load(Ordering::Acquire);
        if head == tail {
            return false;
        }
        let Some(slot) = self.0.slots.get(head % self.0.slots.len()) else {
            return false;
        };
        // SAFETY: the slot is inside of the queue: the sender does not touch it before `head` is published below, and there is no
        // other receiver (`&mut self`, not clonable).
        std::mem::swap(unsafe { &mut *slot.get() }, item);
        self.0.head.0.store(head.wrapping_add(1), Ordering::Release);
        true
    }

    /// Whether nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.head.0.load(Ordering::Relaxed) == self.0.tail.0.load(Ordering::Acquire)
    }
}
