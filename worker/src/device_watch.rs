//! What a run says of its device besides the losses: how long the first step took, and the memory in use.
//!
//! The first step on a GPU compiles and measures kernels, unless an earlier process has left them
//! (`kernel_cache.rs`): its time is what that costs. Memory is read every [`MEMORY_EVERY`] steps, since a reading waits for
//! the device's queue; a growing one is then seen in the log long before it ends the run.

use std::time::Instant;

use ballast_model::Device;

/// Steps between two readings; the second step is read too, when every buffer of a step has been allocated once.
const MEMORY_EVERY: u64 = 100;

/// Watches one run of the device thread.
pub(crate) struct DeviceWatch {
    opened: Instant,
    steps: u64,
}

/// A reading of the device's memory, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DeviceMemory {
    /// Held by tensors and buffers.
    pub(crate) in_use: u64,
    /// Taken from the device, free for reuse included.
    pub(crate) reserved: u64,
}

impl DeviceMemory {
    /// Reads it; none on a device that does not say, as the CPU. Waits for what has been asked of the device.
    pub(crate) fn read(device: &Device) -> Option<Self> {
        let usage = device.memory_pool_usage()?;
        Some(Self { in_use: usage.bytes_in_use, reserved: usage.bytes_reserved })
    }
}

impl DeviceWatch {
    /// Begins when the device is about to be used.
    pub(crate) fn start() -> Self {
        Self { opened: Instant::now(), steps: 0 }
    }

    /// Takes note of a step whose gradient was computed in so many seconds, and says what there is to say of it.
    pub(crate) fn stepped(&mut self, step: u64, compute_seconds: f64, device: &Device) {
        self.steps += 1;
        if self.steps == 1 {
            let since_start_seconds = self.opened.elapsed().as_secs_f64();
            tracing::info!(step, compute_seconds, since_start_seconds, "first step computed");
        }
        if is_read(self.steps)
            && let Some(DeviceMemory { in_use, reserved }) = DeviceMemory::read(device)
        {
            tracing::info!(step, in_use_bytes = in_use, reserved_bytes = reserved, "device memory");
        }
    }
}

/// Whether memory is read after the `count`th step.
fn is_read(count: u64) -> bool {
    count == 2 || count.is_multiple_of(MEMORY_EVERY)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_early_and_then_rarely() {
        let read: Vec<u64> = (1..=300).filter(|count| is_read(*count)).collect();
        assert_eq!(read, [2, 100, 200, 300]);
    }

    #[test]
    fn a_device_that_says_nothing_is_left_alone() {
        assert_eq!(DeviceMemory::read(&ballast_model::cpu_device()), None);
        let mut watch = DeviceWatch::start();
        (0..200).for_each(|step| watch.stepped(step, 0.1, &ballast_model::cpu_device()));
        assert_eq!(watch.steps, 200);
    }
}
