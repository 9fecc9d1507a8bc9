//! Memory that a thread keeps for the tiles it works on.

use std::cell::RefCell;

thread_local! {
    static FREE: RefCell<Vec<Vec<f32>>> = const { RefCell::new(Vec::new()) };
}

/// Calls `work` with `count` numbers of whatever value, kept for the thread's next call. May be nested.
pub fn with<R>(count: usize, work: impl FnOnce(&mut [f32]) -> R) -> R {
    let mut buffer = FREE.with_borrow_mut(Vec::pop).unwrap_or_default();
    if buffer.len() < count {
        buffer.resize(count, 0.0);
    }
    let result = work(&mut buffer[..count]);
    FREE.with_borrow_mut(|free| free.push(buffer));
    result
}
