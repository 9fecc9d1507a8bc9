//! Gradients that a collective adds up where they lie, by their addresses: NCCL's, without the host in between.

#![expect(unsafe_code, reason = "memory is named by its address")]

use ballast_cuda::nccl::{ReduceInPlace, Span};
use ballast_model::accelerator::{Accelerator, Address, DeviceVec};

use crate::collective::tree::Partial;
use crate::collective::{Collective, CollectiveError, Reduction};

/// A collective of addresses as one of an accelerator's buffers.
pub(super) struct InPlace<A> {
    device: A,
    collective: Box<dyn ReduceInPlace>,
}

impl<A: Accelerator> InPlace<A> {
    pub(super) fn new(device: A, collective: Box<dyn ReduceInPlace>) -> Self {
        Self { device, collective }
    }
}

impl<A: Accelerator> Collective<DeviceVec<A>> for InPlace<A> {
    fn all_reduce(
        &mut self,
        reduction: Reduction<'_>,
        own: Vec<Partial<DeviceVec<A>>>,
    ) -> Result<DeviceVec<A>, CollectiveError> {
        let (nodes, mut buffers): (Vec<_>, Vec<_>) = own.into_iter().map(|part| (part.node, part.sum)).unzip();
        if buffers.is_empty() {
            buffers.push(DeviceVec::zeros(&self.device, reduction.elements));
        }
        // The library has a stream of its own: what the accelerator was given to do comes before. Its losses were read, so
        // there is little left.
        self.device.sync();
        let addresses: Vec<Address> = buffers.iter().map(|buffer| self.device.address(buffer.buffer())).collect();
        // SAFETY: the addresses are held until after the reduction, and nothing is launched meanwhile; each buffer has as many
        // values as its length says, of a device's own alignment.
        let span = |index: usize| unsafe { Span::new(addresses[index].pointer(), buffers[index].len()) };
        let own: Vec<_> =
            nodes.iter().zip(0..).map(|(node, index)| Partial { node: *node, sum: span(index) }).collect();
        let reduced = self.collective.reduce(reduction, &own, &span(0));
        drop(own);
        if reduced.is_err() && self.collective.is_wedged() {
            // They may be written to until the process ends, so nobody else may have them.
            std::mem::forget((addresses, buffers));
            return reduced.map(|()| unreachable!("it has failed"));
        }
        drop(addresses);
        reduced.map(|()| buffers.swap_remove(0))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use ballast_model::accelerator::simulated::Simulated;

    use super::*;
    use crate::collective::tree::{Node, SlotSums};

    /// What a reduction was given.
    #[derive(Debug, Default, Clone, PartialEq)]
    struct Given {
        own: Vec<(Node, Vec<f32>)>,
        into: Vec<f32>,
        is_first: bool,
    }

    /// Adds 100 to what it is given; wedged when it has to fail.
    struct Double {
        given: Arc<Mutex<Vec<Given>>>,
        fails: bool,
    }

    /// The values of a span.
    fn values(span: &Span) -> Vec<f32> {
        let pointer = span.address() as *const f32;
        // SAFETY: the caller of the collective holds the memory, which a simulated device has on the host.
        (0..span.elements()).map(|i| unsafe { pointer.add(i).read_unaligned() }).collect()
    }

    impl ReduceInPlace for Double {
        fn reduce(&mut self, _: Reduction<'_>, own: &[Partial<Span>], into: &Span) -> Result<(), CollectiveError> {
            let is_first = own.first().is_none_or(|part| part.sum == *into);
            let own = own.iter().map(|part| (part.node, values(&part.sum))).collect();
            self.given.lock().unwrap().push(Given { own, into: values(into), is_first });
            let pointer = into.address() as *mut f32;
            for (i, value) in values(into).into_iter().enumerate() {
                // SAFETY: as for `values`, and nobody else touches it.
                unsafe { pointer.add(i).write_unaligned(value + 100.0) };
            }
            if self.fails { Err(CollectiveError::Cancelled) } else { Ok(()) }
        }

        fn is_wedged(&self) -> bool {
            self.fails
        }
    }

    #[test]
    fn the_sum_lies_in_the_first_gradient_or_in_zeros() {
        let (device, given) = (Simulated::default(), Arc::new(Mutex::default()));
        let double = Double { given: Arc::clone(&given), fails: false };
        let mut collective = InPlace::new(device.clone(), Box::new(double));
        let mut own = SlotSums::default();
        for (slot, values) in [(0, [1.0, 2.0]), (1, [10.0, 20.0]), (4, [5.0, 6.0])] {
            own.push(Node::leaf(slot), DeviceVec::from_host(&device, &values), |left, right| left.plus(&right));
        }
        let reduction = Reduction { step: 1, slot_ranks: &[0, 0, 1, 1, 0], elements: 2 };
        let before = device.asked();
        let sum = collective.all_reduce(reduction, own.into_parts()).unwrap();
        let after = device.asked();
        assert_eq!(sum.read(0..2), [111.0, 122.0]);
        assert_eq!((after.bytes_down, after.bytes_up), (before.bytes_down, before.bytes_up), "nothing moves");
        assert_eq!(after.waits, before.waits + 1, "what was launched comes before");
        let pair = Node { level: 1, index: 0 };
        let own = vec![(pair, vec![11.0, 22.0]), (Node::leaf(4), vec![5.0, 6.0])];
        assert_eq!(given.lock().unwrap()[0], Given { own, into: vec![11.0, 22.0], is_first: true });

        drop(sum);
        let sum = collective.all_reduce(Reduction { slot_ranks: &[1], ..reduction }, Vec::new()).unwrap();
        assert_eq!(sum.read(0..2), [100.0, 100.0]);
        assert_eq!(given.lock().unwrap()[1], Given { own: vec![], into: vec![0.0, 0.0], is_first: true });
        drop(sum);
        assert_eq!(device.asked().bytes_held, 0);
    }

    #[test]
    fn memory_that_may_still_be_written_to_is_given_to_nobody() {
        let device = Simulated::default();
        let double = Double { given: Arc::default(), fails: true };
        let mut collective = InPlace::new(device.clone(), Box::new(double));
        let own = vec![Partial { node: Node::leaf(0), sum: DeviceVec::from_host(&device, &[1.0, 2.0]) }];
        let reduction = Reduction { step: 1, slot_ranks: &[0], elements: 2 };
        assert!(matches!(collective.all_reduce(reduction, own), Err(CollectiveError::Cancelled)));
        assert_eq!(device.asked().bytes_held, 8);
    }
}
