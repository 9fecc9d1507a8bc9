//! Tells a device that ran out of memory from every other way in which the device thread can die.
//!
//! CubeCL 0.11 allocates on a thread of its own and later than asked. An allocation that fails spoils the buffer; who reads
//! that buffer, or anything computed from it, gets the failure as an error, which burn's readers turn into a panic. So the
//! words are all there is: they are those of `cubecl-runtime/src/server/base.rs` (`IoError`, `LaunchError`),
//! `cubecl-server/src/memory_management/error_graph.rs` and CUDA's own names of errors.

use crate::error::WorkerError;

/// What CubeCL and CUDA say when there is no memory left, in small letters.
const WORDS: [&str; 8] = [
    "out of device memory",
    "outofmemory",
    "out-of-memory error",
    "cuda_error_out_of_memory",
    "cudaerrormemoryallocation",
    // More than the card has in all, or more kinds of pages than are kept.
    "can't allocate buffer of size",
    "every page size the memory tracks still holds live allocations",
    // Of a buffer that was spoilt: the allocation's own error is in the log.
    "the reservation behind it failed",
];

/// Words before the bytes that were asked for.
const SIZES: [&str; 3] = ["out of device memory allocating ", "can't allocate buffer of size: ", "can't allocate "];

/// Returns the error of a device thread that died with this message.
pub(crate) fn death(device: String, message: String) -> WorkerError {
    match shortage(&message) {
        Some(Shortage { bytes }) => WorkerError::OutOfMemory { device, bytes },
        None => WorkerError::Panicked { message },
    }
}

/// Returns what a panic's message says of memory: the bytes that there was no room for, where it names them; none when it is
/// about something else.
pub(crate) fn shortage(message: &str) -> Option<Shortage> {
    let message = message.to_lowercase();
    WORDS.iter().any(|words| message.contains(words)).then(|| Shortage { bytes: bytes(&message) })
}

/// There was no room for an allocation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shortage {
    /// Its size, where it is known.
    pub(crate) bytes: Option<u64>,
}

fn bytes(message: &str) -> Option<u64> {
    let number = |words: &&str| {
        let rest = message.split(*words).nth(1)?.trim_start_matches(|c: char| !c.is_ascii_digit() && c != '\n');
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        rest[..digits].parse().ok()
    };
    SIZES.iter().find_map(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `Tensor::into_data` panics with: the words of its `expect`, and the error as `server_err` of burn-cubecl has it.
    const READ: &str = "Error while reading data: use `try_into_data` instead to catch the error at runtime: An error \
        happened during execution\nCaused by:\n  An IO error happened during a server call\nCaused by:\n  out of device \
        memory allocating 6442450944 bytes\nNo backtrace available";

    #[test]
    fn the_words_of_cubecl_are_known() {
        for (message, bytes) in [
            (READ, Some(6_442_450_944)),
            ("called `Result::unwrap()` on an `Err` value: OutOfMemory { size: 512, backtrace: .. }", None),
            ("An out-of-memory error happened during launch\nCaused by:\n  CUDA_ERROR_OUT_OF_MEMORY", None),
            ("can't allocate buffer of size: 99\nNo backtrace available", Some(99)),
            ("Can't allocate 77 bytes: every page size the memory tracks still holds live allocations", Some(77)),
            ("memory ManagedMemoryId(3) was never allocated: the reservation behind it failed", None),
            ("CUDA allocation error: DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")", None),
        ] {
            assert_eq!(shortage(message), Some(Shortage { bytes }), "{message}");
        }
    }

    #[test]
    fn the_error_says_how_much_and_what_to_change() {
        let error = death("cuda:1".to_owned(), READ.to_owned());
        assert_eq!(error.to_string(), "`cuda:1` has no room for 6.00 GiB more");
        let hint = error.hint().unwrap();
        for key in ["step.micro_batch_size", "model.gradient_checkpointing", "precision.compute", "data.resolution"] {
            assert!(hint.contains(key), "{hint}");
        }
        let error = death("cuda:1".to_owned(), "OutOfMemory".to_owned());
        assert_eq!(error.to_string(), "`cuda:1` has no room for what a step needs");
        assert!(matches!(death("cpu".to_owned(), "a bug".to_owned()), WorkerError::Panicked { .. }));
    }

    #[test]
    fn other_deaths_are_not_taken_for_it() {
        for message in ["index out of bounds: the len is 3", "CUDA_ERROR_ILLEGAL_ADDRESS", "the device is poisoned", ""]
        {
            assert_eq!(shortage(message), None, "{message}");
        }
    }
}
