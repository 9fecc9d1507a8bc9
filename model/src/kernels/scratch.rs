//! Memory that a thread keeps for the tiles it works on.

use std::cell::RefCell;

thread_local! {
    static FREE: RefCell<Vec<Vec<f32>>> = const { RefCell::new(Vec::new()) };
}

/// Larger buffers are given back: 128 MiB.
const KEPT: usize = 32 << 20;

/// Calls `work` with `count` numbers of whatever value, kept for the thread's next call. May be nested.
///
/// Fresh memory costs about half a second of CPU time for each gigabyte: the system clears it page by page.
pub fn with<R>(count: usize, work: impl FnOnce(&mut [f32]) -> R) -> R {
    let mut buffer = FREE.with_borrow_mut(|free| best(free, count)).unwrap_or_default();
    if buffer.len() < count {
        drop(buffer); // first, so that both are never there at once
        buffer = vec![0.0; count];
    }
    let result = work(&mut buffer[..count]);
    if buffer.len() <= KEPT {
        FREE.with_borrow_mut(|free| free.push(buffer));
    }
    result
}

/// Takes the smallest buffer that is large enough; else the largest, to be replaced.
fn best(free: &mut Vec<Vec<f32>>, count: usize) -> Option<Vec<f32>> {
    let fitting = (0..free.len()).filter(|i| free[*i].len() >= count).min_by_key(|i| free[*i].len());
    let index = fitting.or_else(|| (0..free.len()).max_by_key(|i| free[*i].len()))?;
    Some(free.swap_remove(index))
}
