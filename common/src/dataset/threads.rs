//! Work shared among threads, none of which shows in the result's order: the caller sorts, or the pieces are numbered.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

/// Does jobs that bring forth further jobs, until none is left. Each thread gathers into a result of its own.
pub(super) fn work_tree<J, R>(jobs: Vec<J>, threads: usize, work: impl Fn(J, &mut R) -> Vec<J> + Sync) -> Vec<R>
where
    J: Send,
    R: Default + Send,
{
    let queue = Queue { state: Mutex::new(State { jobs, busy: 0 }), changed: Condvar::new() };
    let run = || {
        let mut result = R::default();
        let mut state = queue.lock();
        loop {
            if let Some(job) = state.jobs.pop() {
                state.busy += 1;
                drop(state);
                let mut busy = Busy { queue: &queue, more: Vec::new() };
                busy.more = work(job, &mut result);
                drop(busy);
                state = queue.lock();
            } else if state.busy == 0 {
                return result;
            } else {
                state = queue.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
        }
    };
    on_threads(threads, run)
}

/// Does numbered pieces of work, and returns what came of them in order.
pub(super) fn work_pieces<R: Send>(pieces: usize, threads: usize, work: impl Fn(usize) -> R + Sync) -> Vec<R> {
    let next = AtomicUsize::new(0);
    let run = || {
        let mut done = Vec::new();
        loop {
            let piece = next.fetch_add(1, Ordering::Relaxed);
            if piece >= pieces {
                return done;
            }
            done.push((piece, work(piece)));
        }
    };
    let mut all: Vec<(usize, R)> = on_threads(threads.min(pieces), run).into_iter().flatten().collect();
    all.sort_unstable_by_key(|(piece, _)| *piece);
    all.into_iter().map(|(_, result)| result).collect()
}

fn on_threads<R: Send>(threads: usize, run: impl Fn() -> R + Sync) -> Vec<R> {
    thread::scope(|scope| {
        let handles: Vec<_> = (0..threads.max(1)).map(|_| scope.spawn(&run)).collect();
        handles.into_iter().map(|handle| handle.join().expect("reading a data root does not panic")).collect()
    })
}

struct Queue<J> {
    state: Mutex<State<J>>,
    /// There are new jobs, or there will be none.
    changed: Condvar,
}

struct State<J> {
    jobs: Vec<J>,
    /// How many threads have a job, which may bring forth others.
    busy: usize,
}

impl<J> Queue<J> {
    fn lock(&self) -> MutexGuard<'_, State<J>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A thread at work. However that ends, the others hear of it.
struct Busy<'a, J> {
    queue: &'a Queue<J>,
    more: Vec<J>,
}

impl<J> Drop for Busy<'_, J> {
    fn drop(&mut self) {
        let mut state = self.queue.lock();
        state.busy -= 1;
        if !self.more.is_empty() || state.busy == 0 {
            self.queue.changed.notify_all();
        }
        state.jobs.append(&mut self.more);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_job_of_a_tree_is_done_once() {
        for threads in [1, 2, 7] {
            let results = work_tree(vec![1u32], threads, |job, done: &mut Vec<u32>| {
                done.push(job);
                [2 * job, 2 * job + 1].into_iter().filter(|job| *job < 1000).collect()
            });
            let mut all: Vec<u32> = results.into_iter().flatten().collect();
            all.sort_unstable();
            assert_eq!(all, (1..1000).collect::<Vec<_>>());
        }
    }

    #[test]
    fn pieces_come_back_in_order() {
        for threads in [1, 3, 16] {
            assert_eq!(work_pieces(100, threads, |piece| piece * 2), (0..100).map(|n| n * 2).collect::<Vec<_>>());
        }
        assert!(work_pieces(0, 4, |piece| piece).is_empty());
    }
}
