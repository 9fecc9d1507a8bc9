//! The model and its optimizer: from a plan to slot gradients, from a reduced gradient to new parameters.
//!
//! Where the trained state lies, and what computes on it, is the [`Engine`]'s affair. Whoever needs the parameters in a
//! fixed order (hash, a joiner) reads them along the layout.

mod state;
mod text;

use std::cell::Cell;
use std::path::Path;

use ballast_common::config::RunConfig;
use ballast_common::rng::Streams;
use ballast_model::adamw::{AdamW, Group};
use ballast_model::objective::min_snr_weight;
use ballast_model::{Device, FlatLayout, MicroBatch, ParamGroup, StableDiffusion, Trainable, tensor};
use ballast_proto::v1;
use burn::tensor::Tensor;
pub(crate) use text::text_settings;
use tokio_util::sync::CancellationToken;
use tracing::{info_span, warn};

use crate::collective::tree::{Node, Partial, SlotSums};
use crate::draws::Key;
use crate::engine::{Engine, NotFinite, Pass};
use crate::error::WorkerError;
use crate::hash::FlatHasher;
use crate::images::PictureRequest;
use crate::latents::Encoder;
use crate::prefetch::{Loaded, Prefetch, Ticket};
use crate::save::Snapshot;

/// A worker's share of a step.
#[derive(Debug)]
pub(crate) struct Computed<S = Vec<f32>> {
    /// Sums over the largest complete subtrees of the worker's slots.
    pub(crate) parts: Vec<Partial<S>>,
    /// Of the worker's slots, in the order of the plan.
    pub(crate) losses: Vec<v1::OccurrenceLoss>,
}

/// Trains one model on one device.
pub(crate) struct Trainer<E> {
    config: RunConfig,
    streams: Streams,
    device: Device,
    engine: E,
    encoder: Encoder,
    next_step: u64,
    /// Whether a caption that is cut off was named: one is enough.
    has_named_long_caption: Cell<bool>,
}

impl<E: Engine> Trainer<E> {
    /// Puts a loaded model under training.
    ///
    /// # Errors
    /// When the config trains no part of it.
    pub(crate) fn new(config: &RunConfig, mut model: StableDiffusion, encoder: Encoder) -> Result<Self, WorkerError> {
        if !config.model.train_unet && !config.model.train_text_encoder {
            return Err(WorkerError::NothingToTrain);
        }
        text::prepare(&mut model, text_settings(config))?;
        model.compute_in(crate::precision::compute(config.precision.compute, &model.device()));
        let layout = model.trained_layout(config.model.train_text_encoder);
        Ok(Self {
            streams: Streams::new(config.run.seed),
            device: model.device(),
            engine: E::new(model, layout, &config.optimizer)?,
            encoder,
            config: config.clone(),
            next_step: 0,
            has_named_long_caption: Cell::new(false),
        })
    }

    /// Takes up the state of a checkpoint whose model was loaded already.
    pub(crate) fn restore(
        &mut self,
        next_step: u64,
        read: impl FnOnce(&FlatLayout, &mut AdamW) -> Result<(), WorkerError>,
    ) -> Result<(), WorkerError> {
        self.next_step = next_step;
        self.engine.change_optimizer(read)
    }

    /// Steps that the parameters have made, hence the next one to compute.
    pub(crate) fn next_step(&self) -> u64 {
        self.next_step
    }

    /// Hash of the trained parameters, equal on all workers.
    pub(crate) fn params_hash(&self) -> String {
        let mut hasher = FlatHasher::default();
        self.engine.read_params(0..self.elements(), &mut |values| hasher.update(values));
        hasher.finish()
    }

    /// Count of trained parameters.
    pub(crate) fn elements(&self) -> usize {
        self.engine.layout().total
    }

    /// What keeps the state and computes on it.
    pub(crate) fn engine(&self) -> &E {
        &self.engine
    }

    /// The trained parts under autodiff; shares the model's tensors, so it must not outlive the computing.
    fn trainable(&self) -> Trainable {
        let StableDiffusion { unet, text_encoder, .. } = self.model();
        Trainable::new(unet.clone(), text_encoder.clone(), self.config.model.train_text_encoder)
    }

    /// The model as it stands.
    pub(crate) fn model(&self) -> &StableDiffusion {
        self.engine.model()
    }

    /// What a checkpoint holds, borrowed where it lies on the host: it costs no memory there, and training waits until it is
    /// written.
    ///
    /// To go on training meanwhile takes a copy. A clone of the model shares its tensors until the next step moves them, and
    /// then each is copied as it is moved; the optimizer's buffers have to be copied at once. With SD 1.5 these are 3.4 and
    /// 6.9 GB, too much for a worker on the CPU.
    pub(crate) fn snapshot<'a>(&'a self, run_id: &'a str, params_hash: &'a str) -> Snapshot<'a> {
        Snapshot {
            run_id,
            next_step: self.next_step,
            params_hash,
            model: self.model(),
            layout: self.engine.layout(),
            optimizer: self.engine.optimizer(),
        }
    }

    /// Computes the plan's slots. None when the generation ended meanwhile.
    pub(crate) fn compute(
        &mut self,
        plan: &v1::Plan,
        pictures: &Prefetch,
        cancel: &CancellationToken,
    ) -> Result<Option<Computed<E::Flat>>, WorkerError> {
        let mut sums = SlotSums::default();
        let mut computing = Vec::new();
        let not_finite = |what: NotFinite, micro_batch: &v1::MicroBatch| WorkerError::NonFinite {
            what,
            step: plan.step,
            slot: micro_batch.slot,
            paths: micro_batch.occurrences.iter().map(|occurrence| occurrence.path.clone()).collect(),
        };
        for micro_batch in &plan.micro_batches {
            if cancel.is_cancelled() {
                return Ok(None);
            }
            let Some(loaded) = self.wait_for_pictures(plan, micro_batch, pictures) else { return Ok(None) };
            let slot = micro_batch.slot;
            let (batch, slot_losses) =
                info_span!("encode", slot).in_scope(|| self.encode(plan.epoch, micro_batch, loaded));
            let computed = info_span!("forward_backward", slot).in_scope(|| {
                let pass = Pass {
                    normaliser: self.config.step.global_batch_size() as f32,
                    recomputation: self.config.model.gradient_checkpointing,
                    trains_unet: self.config.model.train_unet,
                };
                self.engine.forward_backward(&self.trainable(), batch, pass)
            });
            let (found, gradient) = computed.map_err(|what| not_finite(what, micro_batch))?;
            sums.push(Node::leaf(slot), gradient, |left, right| self.engine.add(left, right));
            computing.push((micro_batch, slot_losses, found));
        }
        // All slots are on their way before the first is waited for.
        let mut losses = Vec::new();
        for (micro_batch, mut slot_losses, found) in computing {
            let found = self.engine.losses(found).map_err(|what| not_finite(what, micro_batch))?;
            for (to, from) in slot_losses.iter_mut().zip(&found).filter(|(to, _)| to.skipped.is_empty()) {
                to.loss = *from;
            }
            losses.extend(slot_losses);
        }
        Ok(Some(Computed { parts: sums.into_parts(), losses }))
    }

    fn wait_for_pictures(
        &self,
        plan: &v1::Plan,
        micro_batch: &v1::MicroBatch,
        pictures: &Prefetch,
    ) -> Option<Vec<(PictureRequest, Loaded)>> {
        let slot = micro_batch.slot;
        let _waiting = info_span!("data.wait", slot).entered();
        let ticket = |index| Ticket { generation: plan.generation, step: plan.step, slot, index };
        (0..micro_batch.occurrences.len()).map(|index| pictures.take(ticket(index))).collect()
    }

    /// Makes the model's input of a slot, padded to the size of a micro-batch, and the losses as far as they are known.
    fn encode(
        &mut self,
        epoch: u64,
        micro_batch: &v1::MicroBatch,
        loaded: Vec<(PictureRequest, Loaded)>,
    ) -> (MicroBatch, Vec<v1::OccurrenceLoss>) {
        let model = self.engine.model();
        let factor = model.vae.factor();
        let channels = model.vae.latent_channels();
        let (height, width) = (micro_batch.height as usize / factor, micro_batch.width as usize / factor);
        let plane = height * width;
        let shape = [1, channels, height, width];
        let size = self.config.step.micro_batch_size as usize;
        let num_train_timesteps = model.noise_scheduler.num_train_timesteps();
        let (mut latents, mut noise, mut timesteps, mut token_ids, mut weights) =
            (vec![], vec![], vec![], vec![], vec![]);
        let mut losses = Vec::new();
        for (occurrence, (request, loaded)) in micro_batch.occurrences.iter().zip(loaded) {
            let key = Key { streams: &self.streams, epoch, occurrence };
            let timestep = key.timestep(&self.config.objective, num_train_timesteps);
            let (posterior, skipped) = match loaded {
                Loaded::Picture(picture) => {
                    (Some(self.encoder.encode(&model.vae, &self.device, &request, &picture)), String::new())
                }
                Loaded::Cached => (Some(self.encoder.recall(&request)), String::new()),
                Loaded::Skipped(reason) => (None, reason),
            };
            let weight = if posterior.is_some() { self.weight(occurrence.loss_scale, timestep) } else { 0.0 };
            latents.push(match posterior {
                Some(posterior) => posterior.sample(tensor(key.posterior_noise(channels * plane), shape, &self.device)),
                None => Tensor::zeros(shape, &self.device),
            });
            noise.extend(key.noise(channels, plane, self.config.objective.offset_noise));
            timesteps.push(timestep);
            token_ids.push(model.tokenizer.encode_with(key.caption(), text_settings(&self.config)));
            self.name_long_caption(key.caption());
            weights.push(weight as f32);
            let position = occurrence.position;
            losses.push(v1::OccurrenceLoss { position, loss: 0.0, weight, timestep, skipped });
        }
        let padding = size.saturating_sub(losses.len());
        latents.extend((0..padding).map(|_| Tensor::zeros(shape, &self.device)));
        noise.resize(size * channels * plane, 0.0);
        timesteps.resize(size, 0);
        token_ids.resize_with(size, || model.tokenizer.encode(""));
        weights.resize(size, 0.0);
        let noise = tensor(noise, [size, channels, height, width], &self.device);
        (MicroBatch { latents: Tensor::cat(latents, 0), noise, timesteps, token_ids, weights }, losses)
    }

    fn name_long_caption(&self, caption: &str) {
        let settings = text_settings(&self.config);
        let cut_off =
            if self.has_named_long_caption.get() { 0 } else { self.model().tokenizer.cut_off(caption, settings) };
        if cut_off > 0 {
            self.has_named_long_caption.set(true);
            let most = settings.max_tokens();
            warn!(
                caption,
                cut_off, "a caption has more than {most} tokens: the rest is not used (others are not named)"
            );
        }
    }

    fn weight(&self, loss_scale: f64, timestep: u32) -> f64 {
        let scheduler = &self.model().noise_scheduler;
        let gamma = self.config.objective.min_snr_gamma;
        loss_scale * min_snr_weight(scheduler.snr(timestep), gamma, scheduler.prediction_type())
    }

    /// Clips the reduced gradient, moves the parameters and counts the step.
    pub(crate) fn apply(&mut self, gradient: E::Flat, norm: f64, plan: &v1::Plan) {
        let layout = self.engine.layout();
        let mut groups = Vec::new();
        if self.config.model.train_unet {
            groups.push(Group { range: layout.group_range(ParamGroup::Unet), lr: plan.unet_lr });
        }
        if self.config.model.train_text_encoder {
            let ranges = text::used_ranges(layout, &self.model().text_encoder);
            groups.extend(ranges.into_iter().map(|range| Group { range, lr: plan.text_encoder_lr }));
        }
        let norm_max = self.config.optimizer.max_grad_norm;
        self.engine.apply(gradient, norm, norm_max, self.next_step + 1, &groups);
        self.next_step += 1;
    }
}

/// Loads the model to start from: a checkpoint if the coordinator names one, else the config's.
///
/// # Errors
/// Names the file that is missing, damaged or does not fit.
pub(crate) fn load<E: Engine>(
    config: &RunConfig,
    checkpoint: Option<&Path>,
    encoder: Encoder,
    device: &Device,
) -> Result<Trainer<E>, WorkerError> {
    match checkpoint {
        Some(folder) => crate::resume::load_checkpoint(config, folder, encoder, device),
        None => {
            let path = config
                .model
                .path
                .as_deref()
                .ok_or_else(|| WorkerError::Protocol { problem: "its config names no model".to_owned() })?;
            let failed = |source| WorkerError::Model { path: path.to_owned(), source: Box::new(source) };
            Trainer::new(config, StableDiffusion::load(path, device).map_err(failed)?, encoder)
        }
    }
}

#[cfg(test)]
mod tests;
