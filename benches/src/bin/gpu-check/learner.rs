//! Who computes the gradient of a step and moves the parameters: as the worker does it on the device.

use ballast_model::accelerator::simulated::Simulated;
use ballast_model::accelerator::{Accelerator, DeviceState};
use ballast_model::adamw::{AdamW, AdamWSettings, Group, Scaled};
use ballast_model::norm::{clip_factor, global_norm};
use ballast_model::{Device, FlatLayout, MicroBatch, StableDiffusion, Trainable, cpu_device};

/// What clipping leaves of a gradient.
const NORM_MAX: f64 = 1.0;
const LR: f64 = 1e-5;
/// PyTorch's.
const SETTINGS: AdamWSettings = AdamWSettings { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 1e-2 };

/// Makes steps.
pub(crate) trait Learner {
    /// Makes a step, from 1 on, and returns its losses, `[batch]`. `between` is called when the gradient is there, or is being
    /// computed.
    fn step(
        &mut self,
        model: &mut StableDiffusion,
        batch: MicroBatch,
        recompute: bool,
        step: u64,
        between: &mut dyn FnMut() -> anyhow::Result<()>,
    ) -> anyhow::Result<Vec<f32>>;
}

/// The learner that the worker has for a device. `simulated` takes the one of accelerators with the host's memory.
pub(crate) fn of(
    model: &mut StableDiffusion,
    layout: FlatLayout,
    device: &Device,
    simulated: bool,
) -> Box<dyn Learner> {
    if *device == cpu_device() {
        return if simulated {
            Box::new(DeviceLearner::<Simulated>::new(model, layout))
        } else {
            Box::new(HostLearner::new(layout))
        };
    }
    #[cfg(feature = "cuda")]
    return Box::new(DeviceLearner::<ballast_model::cuda::CubeMemory>::new(model, layout));
    #[cfg(not(feature = "cuda"))]
    unreachable!("a build without CUDA opens no other device");
}

/// In the host's memory: for a CPU.
pub(crate) struct HostLearner {
    layout: FlatLayout,
    optimizer: AdamW,
}

impl HostLearner {
    pub(crate) fn new(layout: FlatLayout) -> Self {
        Self { optimizer: AdamW::new(SETTINGS, layout.total), layout }
    }
}

impl Learner for HostLearner {
    fn step(
        &mut self,
        model: &mut StableDiffusion,
        batch: MicroBatch,
        recompute: bool,
        step: u64,
        between: &mut dyn FnMut() -> anyhow::Result<()>,
    ) -> anyhow::Result<Vec<f32>> {
        let count = batch.weights.len() as f32;
        let trainable = Trainable::new(model.unet.clone(), model.text_encoder.clone(), false);
        let (losses, gradient) = trainable.loss_and_gradient(&model.noise_scheduler, batch, count, recompute);
        drop(trainable); // shares the parameters, which are changed where they are
        between()?;
        let factor = clip_factor(global_norm(&gradient), NORM_MAX);
        let groups = [Group { range: 0..gradient.len(), lr: LR }];
        let optimizer = &mut self.optimizer;
        model.change_trained(&self.layout, &mut |offset, values| {
            let gradient = Scaled { gradient: &gradient, factor };
            optimizer.step_part_scaled(offset, values, gradient, step, &groups);
        });
        losses.without_autodiff().try_into_vec_as::<f32>().map_err(|error| anyhow::anyhow!("{error:?}"))
    }
}

/// On an accelerator, as `worker/src/engine/device.rs` does it: waits where that waits.
pub(crate) struct DeviceLearner<A: Accelerator>(DeviceState<A>);

impl<A: Accelerator> DeviceLearner<A> {
    /// Takes the model's parameters.
    pub(crate) fn new(model: &mut StableDiffusion, layout: FlatLayout) -> Self {
        Self(DeviceState::take_up(A::open(&model.device()), model, layout, SETTINGS))
    }
}

impl<A: Accelerator> Learner for DeviceLearner<A> {
    fn step(
        &mut self,
        model: &mut StableDiffusion,
        batch: MicroBatch,
        recompute: bool,
        step: u64,
        between: &mut dyn FnMut() -> anyhow::Result<()>,
    ) -> anyhow::Result<Vec<f32>> {
        let count = batch.weights.len() as f32;
        let trainable = Trainable::new(model.unet.clone(), model.text_encoder.clone(), false);
        let (losses, gradient) = self.0.loss_and_gradient(&trainable, &model.noise_scheduler, batch, count, recompute);
        drop(trainable); // shares the parameters, which are changed where they are
        let norm = self.0.norm(&gradient);
        let losses =
            losses.without_autodiff().try_into_vec_as::<f32>().map_err(|error| anyhow::anyhow!("{error:?}"))?;
        anyhow::ensure!(norm.wait().is_finite(), "the gradient of step {step} is not finite");
        between()?;
        let measured = self.0.measure(&gradient);
        let groups = [Group { range: 0..self.0.layout().total, lr: LR }];
        self.0.apply(model, gradient, (measured.norm, NORM_MAX), step, &groups);
        Ok(losses)
    }
}
