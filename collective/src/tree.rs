//! The one order in which slot gradients are added (law 7): a balanced binary tree over slot numbers.
//!
//! A node of level `k` and index `i` covers the slots `i·2^k .. (i+1)·2^k`, so a range `[lo, hi)` of the tree splits at
//! `lo + next_power_of_two(hi − lo) / 2`. A slot that holds no micro-batch is absent, not zero: a node with one child
//! *is* that child, no addition takes place. Therefore the sum depends on the filled slots alone, never on who computed
//! them.

use crate::Reduction;

/// A place in the tree: the slots `index·2^level .. (index+1)·2^level`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Node {
    /// Height above the slots: 0 is a single slot.
    pub level: u32,
    /// Number among the nodes of this level, from the left.
    pub index: u32,
}

impl Node {
    /// Returns the leaf of a slot.
    pub const fn leaf(slot: u32) -> Self {
        Self { level: 0, index: slot }
    }

    /// First slot the node covers.
    pub const fn first_slot(self) -> u32 {
        self.index << self.level
    }

    const fn end(self) -> u32 {
        (self.index + 1) << self.level
    }

    /// Returns the parent, when `right` is this node's right sibling.
    fn joins(self, right: Self) -> Option<Self> {
        let siblings = self.level == right.level && self.index.is_multiple_of(2) && self.index + 1 == right.index;
        siblings.then_some(Self { level: self.level + 1, index: self.index / 2 })
    }
}

/// The sum of a subtree's slots.
#[derive(Debug, Clone, PartialEq)]
pub struct Partial<T = Vec<f32>> {
    /// Which subtree.
    pub node: Node,
    /// Its sum.
    pub sum: T,
}

/// Adds up slots as they are computed and keeps only the largest complete subtrees.
///
/// Slots come in ascending order. At most `2·log2(slots)` sums are alive at once, however many slots a rank owns.
#[derive(Debug)]
pub struct SlotSums<T = Vec<f32>> {
    parts: Vec<Partial<T>>,
}

impl<T> Default for SlotSums<T> {
    fn default() -> Self {
        Self { parts: Vec::new() }
    }
}

impl<T> SlotSums<T> {
    /// Adds a subtree that lies to the right of all earlier ones; `add(left, right)` makes the sum of two siblings.
    ///
    /// # Panics
    /// When the subtree overlaps an earlier one or lies left of it.
    pub fn push(&mut self, node: Node, sum: T, mut add: impl FnMut(T, T) -> T) {
        if let Some(last) = self.parts.last() {
            assert!(last.node.end() <= node.first_slot(), "slots are added once each, in ascending order");
        }
        let mut part = Partial { node, sum };
        while let Some(node) = self.parts.last().and_then(|left| left.node.joins(part.node)) {
            let left = self.parts.pop().expect("the loop condition saw it");
            part = Partial { node, sum: add(left.sum, part.sum) };
        }
        self.parts.push(part);
    }

    /// Returns the largest complete subtrees, by slot.
    pub fn into_parts(self) -> Vec<Partial<T>> {
        self.parts
    }

    /// Returns the sum of the whole tree, when everything from slot 0 to the last filled slot was pushed; none when
    /// nothing was.
    ///
    /// What is left then are complete subtrees of falling size, from left to right. The slots right of them are absent,
    /// so each right one, as it stands, is the sibling of the one before it.
    ///
    /// # Panics
    /// When a slot is missing in between.
    pub fn into_total(mut self, mut add: impl FnMut(T, T) -> T) -> Option<T> {
        let mut covered = 0;
        for part in &self.parts {
            assert_eq!(part.node.first_slot(), covered, "the slots are complete from 0 on");
            covered = part.node.end();
        }
        let mut total = self.parts.pop()?.sum;
        while let Some(left) = self.parts.pop() {
            total = add(left.sum, total);
        }
        Some(total)
    }
}

/// Returns the subtrees whose sums a rank sends: the largest complete ones among its slots.
///
/// `slot_ranks` names the owner of each filled slot.
pub fn subtrees_of_rank(slot_ranks: &[u32], rank: u32) -> Vec<Node> {
    let mut sums = SlotSums::default();
    for slot in (0..slot_ranks.len()).filter(|slot| slot_ranks[*slot] == rank) {
        sums.push(Node::leaf(slot as u32), (), |(), ()| ());
    }
    sums.into_parts().into_iter().map(|part| part.node).collect()
}

/// Checks that a rank brings the sums that it was asked for; `len` counts the elements of one.
///
/// # Panics
/// When it does not.
pub fn assert_own<S>(reduction: &Reduction<'_>, rank: u32, own: &[Partial<S>], len: impl Fn(&S) -> usize) {
    let nodes: Vec<Node> = own.iter().map(|part| part.node).collect();
    let asked = subtrees_of_rank(reduction.slot_ranks, rank);
    assert_eq!(nodes, asked, "a worker brings the sums of the slots that it was given");
    let elements = reduction.elements;
    assert!(own.iter().all(|part| len(&part.sum) == elements), "gradients of one model have {elements} elements");
}

/// Adds `right` to `left`, element by element.
///
/// # Panics
/// When the lengths differ.
pub fn add(mut left: Vec<f32>, right: Vec<f32>) -> Vec<f32> {
    assert_eq!(left.len(), right.len(), "gradients of one model have one length");
    for (left, right) in left.iter_mut().zip(right) {
        *left += right;
    }
    left
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The definition, word for word, as text: which sums are made of the slots `lo..hi`.
    fn expression(lo: u32, hi: u32) -> String {
        match hi - lo {
            1 => lo.to_string(),
            length => {
                let middle = lo + length.next_power_of_two() / 2;
                format!("({}+{})", expression(lo, middle), expression(middle, hi))
            }
        }
    }

    fn add_text(left: String, right: String) -> String {
        format!("({left}+{right})")
    }

    #[test]
    fn the_streamed_sum_is_the_recursive_tree() {
        for slots in 1..70 {
            let mut sums = SlotSums::default();
            for slot in 0..slots {
                sums.push(Node::leaf(slot), slot.to_string(), add_text);
                assert!(sums.parts.len() <= 7);
            }
            assert_eq!(sums.into_total(add_text).unwrap(), expression(0, slots));
        }
        assert_eq!(expression(0, 5), "(((0+1)+(2+3))+4)");
        assert_eq!(expression(0, 7), "(((0+1)+(2+3))+((4+5)+6))");
    }

    #[test]
    fn any_split_into_contiguous_ranks_gives_the_same_tree() {
        for slots in 1..20_u32 {
            for cut in 0..=slots {
                for second in cut..=slots {
                    let mut whole = SlotSums::default();
                    for range in [0..cut, cut..second, second..slots] {
                        let mut own = SlotSums::default();
                        range.for_each(|slot| own.push(Node::leaf(slot), slot.to_string(), add_text));
                        own.into_parts().into_iter().for_each(|part| whole.push(part.node, part.sum, add_text));
                    }
                    assert_eq!(whole.into_total(add_text).unwrap(), expression(0, slots));
                }
            }
        }
    }

    #[test]
    fn a_rank_sends_its_largest_subtrees() {
        let nodes = subtrees_of_rank(&[0, 0, 0, 1, 1, 1, 1, 1], 1);
        assert_eq!(nodes, [Node::leaf(3), Node { level: 2, index: 1 }]);
        assert_eq!(subtrees_of_rank(&[0, 0], 1), []);
    }

    #[test]
    #[should_panic(expected = "complete from 0 on")]
    fn a_missing_slot_is_noticed() {
        let mut sums = SlotSums::default();
        sums.push(Node::leaf(1), vec![1.0], add);
        sums.into_total(add);
    }
}
