//! Memory that goes back to the system while its owner keeps the address.
#![cfg_attr(target_os = "linux", expect(unsafe_code, reason = "the system is asked for it by a call of C"))]

/// Gives back what lies behind `values`, page by page. They may be anything afterwards; each page takes memory again, and
/// time to be cleared, when it is written.
#[cfg(target_os = "linux")]
pub fn give_back(values: &mut [f32]) {
    // SAFETY: it takes a number and returns one.
    let Ok(page) = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }) else { return };
    let bytes = values.as_mut_ptr_range();
    let (start, end) = ((bytes.start as usize).next_multiple_of(page), bytes.end as usize / page * page);
    if start < end {
        // SAFETY: whole pages within the slice, which is borrowed for writing. Where they are the process's own memory they read
        // as zeros from now on, elsewhere as what they are mapped from; every pattern of bits is an `f32`.
        unsafe { libc::madvise(start as *mut libc::c_void, end - start, libc::MADV_DONTNEED) };
    }
}

/// Elsewhere there is no such call: the memory stays.
#[cfg(not(target_os = "linux"))]
pub fn give_back(_values: &mut [f32]) {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_given_back_can_be_written_again_and_neighbours_stay() {
        let mut values = vec![1.0f32; 1 << 20];
        give_back(&mut values[1000..900_000]);
        assert!(values[..1000].iter().chain(&values[900_000..]).all(|value| *value == 1.0));
        #[cfg(target_os = "linux")]
        assert!(values[10_000..800_000].iter().all(|value| *value == 0.0));
        values.fill(2.0);
        assert!(values.iter().all(|value| *value == 2.0));
        give_back(&mut values[3..5]);
        assert_eq!(values[3..5], [2.0, 2.0]);
    }
}
