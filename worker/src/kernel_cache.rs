//! Opens the kernel cache (`ballast_model::kernel_cache`) before a worker touches its GPU.

/// Opens it where the device is a GPU; says what it holds, or why it is not there: training then starts more slowly.
pub(crate) fn open(device: &str) {
    #[cfg(feature = "cuda")]
    if device.starts_with("cuda") {
        use ballast_model::{cuda::environment, kernel_cache::Places};
        let places = Places::of_this_process();
        let folder = places.folder.display();
        match environment::open(&places) {
            Ok(environment::Kept { choices, kernels, imported }) => {
                tracing::info!(%folder, choices, kernels, imported, "kernel cache opened");
            }
            Err(error) => {
                let reason = ballast_common::error_chain(&error);
                tracing::warn!(%folder, reason, "without a kernel cache every start compiles and measures anew");
            }
        }
    }
    #[cfg(not(feature = "cuda"))]
    let _ = device;
}
