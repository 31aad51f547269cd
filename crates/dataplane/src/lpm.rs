//! Longest-prefix match as a persistent Patricia trie (Morrison 1968) over 128 bits.
//!
//! Nodes are shared between snapshots: a change copies the nodes on its path only if a snapshot still holds them, so a table of
//! 100 000 routes is published to workers for the price of a few dozen nodes. Each node has a value, two children, or both: the
//! depth is bounded by the address length and in practice by the logarithm of the number of routes. Rejected: a DIR-24-8
//! table (fast, but 32 MiB per VNI, and copied whole per change). Only the first packet of a flow looks here.

use std::sync::Arc;

/// Bits a table is keyed by. IPv4 uses the upper 32 of them.
const WIDTH: u8 = 128;

/// A longest-prefix-match table.
#[derive(Clone, Debug)]
pub struct Lpm<V> {
    root: Link<V>,
    len: usize,
}

type Link<V> = Option<Arc<NodeOf<V>>>;

/// A prefix and its value, as listed by [`Lpm::for_each`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot<V> {
    /// The prefix, left aligned, host bits zero.
    pub bits: u128,
    /// Significant bits.
    pub length: u8,
    /// What was inserted.
    pub value: V,
}

#[derive(Clone, Debug)]
struct NodeOf<V> {
    bits: u128,
    length: u8,
    value: Option<V>,
    children: [Link<V>; 2],
}

fn mask(bits: u128, length: u8) -> u128 {
    bits & u128::MAX
        .checked_shl(u32::from(WIDTH.saturating_sub(length)))
        .unwrap_or(0)
}

/// Whether a prefix covers `bits`. Counting equal leading bits takes half as long as masking 128 of them.
#[inline]
const fn covers(prefix: u128, length: u8, bits: u128) -> bool {
    (prefix ^ bits).leading_zeros() >= length as u32
}

/// The bit that decides below a prefix of `length` bits; false below the longest ones.
#[inline]
const fn branch(bits: u128, length: u8) -> bool {
    let half = if length < 64 { bits >> 64 } else { bits };
    length < WIDTH && (half as u64) << (length & 63) >> 63 != 0
}

impl<V> Default for Lpm<V> {
    fn default() -> Self {
        Lpm { root: None, len: 0 }
    }
}

impl<V: Copy> Lpm<V> {
    /// Number of prefixes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no prefix.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The value of the longest prefix that covers `bits`, and that prefix's length.
    #[must_use]
    pub fn lookup(&self, bits: u128) -> Option<(u8, V)> {
        let mut best: Option<&NodeOf<V>> = None;
        let mut link = self.root.as_deref();
        while let Some(node) = link {
            if !covers(node.bits, node.length, bits) {
                break;
            }
            if node.value.is_some() {
                best = Some(node);
            }
            // The longest ones have no children.
            let [zero, one] = &node.children;
            link = if branch(bits, node.length) { one } else { zero }.as_deref();
        }
        let NodeOf { length, value, .. } = best?;
        Some((*length, (*value)?))
    }

    /// The value of exactly this prefix.
    #[must_use]
    pub fn get(&self, bits: u128, length: u8) -> Option<V> {
        let bits = mask(bits, length);
        let mut link = self.root.as_deref();
        while let Some(node) = link {
            if node.length > length || mask(bits, node.length) != node.bits {
                return None;
            }
            if node.length == length {
                return node.value;
            }
            let [zero, one] = &node.children;
            link = if branch(bits, node.length) { one } else { zero }.as_deref();
        }
        None
    }

    /// Sets the value of a prefix and returns the former one. `length` above 128 is taken as 128.
    pub fn insert(&mut self, bits: u128, length: u8, value: V) -> Option<V> {
        let length = length.min(WIDTH);
        let old = insert(&mut self.root, mask(bits, length), length, value);
        if old.is_none() {
            self.len += 1;
        }
        old
    }

    /// Removes exactly this prefix and returns its value.
    pub fn remove(&mut self, bits: u128, length: u8) -> Option<V> {
        // Looking first keeps a miss from copying the path of a shared table.
        let value = self.get(bits, length)?;
        remove(&mut self.root, mask(bits, length), length);
        self.len -= 1;
        Some(value)
    }

    /// Calls `visit` for every prefix: ascending by address, covering prefixes before covered ones.
    pub fn for_each(&self, mut visit: impl FnMut(Slot<V>)) {
        // The depth of a path is at most WIDTH, and each level leaves at most one sibling waiting.
        let mut waiting: Vec<&NodeOf<V>> = Vec::with_capacity(usize::from(WIDTH) + 1);
        waiting.extend(self.root.as_deref());
        while let Some(node) = waiting.pop() {
            if let Some(value) = node.value {
                visit(Slot {
                    bits: node.bits,
                    length: node.length,
                    value,
                });
            }
            let [zero, one] = &node.children;
            waiting.extend(one.as_deref());
            waiting.extend(zero.as_deref());
        }
    }
}

fn leaf<V>(bits: u128, length: u8, value: V) -> Arc<NodeOf<V>> {
    Arc::new(NodeOf {
        bits,
        length,
        value: Some(value),
        children: [None, None],
    })
}

/// Recursion depth is bounded by [`WIDTH`], because the length grows with each level.
fn insert<V: Copy>(link: &mut Link<V>, bits: u128, length: u8, value: V) -> Option<V> {
    let Some(node) = link else {
        *link = Some(leaf(bits, length, value));
        return None;
    };
    let common = ((node.bits ^ bits).leading_zeros() as u8)
        .min(node.length)
        .min(length);
    if common == node.length {
        let node = Arc::make_mut(node);
        if length == node.length {
            return node.value.replace(value);
        }
        return insert(child(node, branch(bits, common)), bits, length, value);
    }
    // The new prefix leaves the path above this node: put a node where they part.
    let below = link.take();
    let below_is_one = below.as_ref().is_some_and(|node| branch(node.bits, common));
    let mut parent = NodeOf {
        bits: mask(bits, common),
        length: common,
        value: None,
        children: [None, None],
    };
    *child(&mut parent, below_is_one) = below;
    if common == length {
        parent.value = Some(value);
    } else {
        *child(&mut parent, !below_is_one) = Some(leaf(bits, length, value));
    }
    *link = Some(Arc::new(parent));
    None
}

fn child<V>(node: &mut NodeOf<V>, one: bool) -> &mut Link<V> {
    let [zero_link, one_link] = &mut node.children;
    if one { one_link } else { zero_link }
}

/// Removes a prefix that is known to be present.
fn remove<V: Copy>(link: &mut Link<V>, bits: u128, length: u8) {
    let Some(node) = link.as_mut() else { return };
    let node = Arc::make_mut(node);
    if node.length == length {
        node.value = None;
    } else {
        remove(child(node, branch(bits, node.length)), bits, length);
    }
    if node.value.is_none() {
        // A node without a value earns its place only by parting two children.
        match &mut node.children {
            [Some(_), Some(_)] => {}
            [only, None] | [None, only] => *link = only.take(),
        }
    }
}
