//! Work that is divided among threads, so that the result does not depend on how many there are.

use std::ops::Range;
use std::sync::mpsc;
use std::thread;

/// Items that a thread should have at least: less is not worth starting it.
const LEAST: usize = 100_000;
/// More threads wait for each other at the memory.
const MOST: usize = 8;

/// Returns how many threads as many items are worth.
pub(super) fn worth(items: u64) -> usize {
    let available = thread::available_parallelism().map_or(1, usize::from).min(MOST);
    available.min((items / LEAST as u64) as usize).max(1)
}

/// Returns a part of `0..length`, which is cut into so many of the same size, or nearly.
pub(super) fn part(length: usize, number: usize, parts: usize) -> Range<usize> {
    let start = |number: usize| (length as u128 * number as u128 / parts as u128) as usize;
    start(number)..start(number + 1)
}

/// Does a piece of work per item, each on a thread of its own, and returns the results in order.
pub(super) fn each<I: Send, T: Send>(items: Vec<I>, work: impl Fn(I) -> T + Sync) -> Vec<T> {
    if items.len() <= 1 {
        return items.into_iter().map(work).collect();
    }
    thread::scope(|scope| {
        let work = &work;
        let threads: Vec<_> = items.into_iter().map(|item| scope.spawn(move || work(item))).collect();
        threads.into_iter().map(|thread| thread.join().expect("the work does not panic")).collect()
    })
}

/// Cuts `0..length` into parts, and returns what `work` makes of each, in order.
pub(super) fn in_parts<T: Send>(parts: usize, length: usize, work: impl Fn(Range<usize>) -> T + Sync) -> Vec<T> {
    each((0..parts).map(|number| part(length, number, parts)).collect(), work)
}

/// Does two things, at the same time where there is more than one thread.
pub(super) fn both<A: Send, B>(threads: usize, first: impl FnOnce() -> A + Send, second: impl FnOnce() -> B) -> (A, B) {
    if threads == 1 {
        return (first(), second());
    }
    thread::scope(|scope| {
        let first = scope.spawn(first);
        let second = second();
        (first.join().expect("the work does not panic"), second)
    })
}

/// Makes pieces and uses them in order, while the next ones are being made. Few of them wait at a time.
pub(super) fn in_order<T: Send>(
    threads: usize,
    pieces: usize,
    make: impl Fn(usize) -> T + Sync,
    mut take: impl FnMut(T),
) {
    if threads == 1 {
        return (0..pieces).for_each(|number| take(make(number)));
    }
    thread::scope(|scope| {
        let make = &make;
        let start = |first: usize| {
            let (sender, receiver) = mpsc::sync_channel(2);
            scope.spawn(move || {
                // The other end is gone only when this work is given up.
                (first..pieces).step_by(threads).all(|number| sender.send(make(number)).is_ok())
            });
            receiver
        };
        let receivers: Vec<mpsc::Receiver<T>> = (0..threads).map(start).collect();
        for number in 0..pieces {
            take(receivers[number % threads].recv().expect("the work does not panic"));
        }
    });
}
