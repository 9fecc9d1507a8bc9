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
    let mut buffer = FREE.with_borrow_mut(Vec::pop).unwrap_or_default();
    if buffer.len() < count {
        buffer.resize(count, 0.0);
    }
    let result = work(&mut buffer[..count]);
    if buffer.len() <= KEPT {
        FREE.with_borrow_mut(|free| free.push(buffer));
    }
    result
}
