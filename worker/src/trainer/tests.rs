mod background;
mod precision;

use std::path::PathBuf;

use ballast_common::dataset::DataRoots;
use ballast_model::objective::weighted_loss;
use ballast_model::{Preset, TextSettings, init_model};

use super::*;
use crate::collective::tree::add;
use crate::engine::HostEngine;
use crate::latents::CachedPictures;
use crate::optimizer::global_norm;
use crate::save::save_checkpoint;

const SIDE: u32 = 64;
const MICRO_BATCH_SIZE: u32 = 2;
const SLOTS: u32 = 4;

/// Pictures on disk, and trainers of one tiny model for them.
struct Bench {
    folder: tempfile::TempDir,
    config: RunConfig,
    seed: u64,
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        for number in 0..8_u32 {
            let shade = |x: u32, y: u32| image::Rgb([(x * (number + 1)) as u8, (y * 3) as u8, (40 * number) as u8]);
            let picture = image::RgbImage::from_fn(80 + number, 70, shade);
            picture.save(folder.path().join(format!("{number}.png"))).unwrap();
        }
        let mut config = RunConfig::default();
        config.step.micro_batch_size = MICRO_BATCH_SIZE;
        config.step.slots = SLOTS;
        config.objective.min_snr_gamma = Some(5.0);
        config.objective.offset_noise = 0.1;
        config.data.crop_jitter = 0.0;
        config.optimizer.lr = 1e-3;
        Self { folder, config, seed: 5 }
    }

    fn trainer(&self) -> Trainer<HostEngine> {
        let encoder = Encoder::new(CachedPictures::default());
        Trainer::new(&self.config, init_model(Preset::Tiny, self.seed), encoder).unwrap()
    }

    fn pictures(&self, plan: &v1::Plan, cached: CachedPictures) -> Prefetch {
        let prefetch = Prefetch::new(DataRoots::at(self.folder.path()), 2, cached);
        for micro_batch in &plan.micro_batches {
            for (index, occurrence) in micro_batch.occurrences.iter().enumerate() {
                let ticket = Ticket { generation: plan.generation, step: plan.step, slot: micro_batch.slot, index };
                let key = Key { streams: &Streams::new(self.config.run.seed), epoch: plan.epoch, occurrence };
                prefetch.request(ticket, key.picture(micro_batch, self.config.data.crop_jitter));
            }
        }
        prefetch
    }

    /// Computes a plan; nothing is remembered from earlier ones.
    fn compute(&self, trainer: &mut Trainer<HostEngine>, plan: &v1::Plan) -> Result<Computed, WorkerError> {
        let pictures = self.pictures(plan, CachedPictures::default());
        Ok(trainer.compute(plan, &pictures, &CancellationToken::new())?.expect("nobody cancels"))
    }

    /// The gradient of a step whose slots are dealt to `world_size` workers, and the losses.
    fn reduced(&self, plan: &v1::Plan, world_size: u32) -> (Vec<f32>, Vec<v1::OccurrenceLoss>) {
        let (mut sums, mut losses) = (SlotSums::default(), Vec::new());
        for rank in 0..world_size {
            let mut share = plan.clone();
            share.micro_batches.retain(|micro_batch| micro_batch.slot * world_size / SLOTS == rank);
            let computed = self.compute(&mut self.trainer(), &share).unwrap();
            computed.parts.into_iter().for_each(|part| sums.push(part.node, part.sum, add));
            losses.extend(computed.losses);
        }
        (sums.into_total(add).unwrap(), losses)
    }

    /// The definition (law 4), picture by picture: `(1 / global_batch_size) · Σ wᵢ · ∇ℓᵢ`.
    fn defined(&self, plan: &v1::Plan) -> Vec<f64> {
        let trainer = self.trainer();
        let (model, streams) = (trainer.model(), Streams::new(self.config.run.seed));
        let mut total = vec![0.0; trainer.elements()];
        for micro_batch in &plan.micro_batches {
            for occurrence in &micro_batch.occurrences {
                let key = Key { streams: &streams, epoch: plan.epoch, occurrence };
                let picture = key.picture(micro_batch, 0.0).load(&DataRoots::at(self.folder.path())).unwrap();
                let images = tensor(picture.to_chw(), [1, 3, SIDE as usize, SIDE as usize], &trainer.device);
                let noise = |values| tensor(values, [1, 4, 8, 8], &trainer.device);
                let timestep = key.timestep(&self.config.objective, 1000);
                let batch = MicroBatch {
                    latents: model.vae.encode(images).sample(noise(key.posterior_noise(256))),
                    noise: noise(key.noise(4, 64, 0.1)),
                    timesteps: vec![timestep],
                    token_ids: vec![model.tokenizer.encode_with(key.caption(), text_settings(&self.config))],
                    weights: vec![1.0],
                };
                let trainable = trainer.trainable();
                let loss = weighted_loss(&trainable.unet, &trainable.text_encoder, &model.noise_scheduler, batch, 1.0);
                let snr = model.noise_scheduler.snr(timestep);
                let weight = occurrence.loss_scale * snr.min(5.0) / snr;
                for (total, gradient) in total.iter_mut().zip(trainable.gradient(loss.scalar)) {
                    *total += weight * f64::from(gradient) / f64::from(SLOTS * MICRO_BATCH_SIZE);
                }
            }
        }
        total
    }
}

/// A plan whose slot `i` has the pictures `slots[i]`, all dealt to one worker.
fn plan(slots: &[&[u32]]) -> v1::Plan {
    let scales = [1.0, 0.5, 2.0, -0.25];
    let occurrence = |picture: &u32| v1::Occurrence {
        position: u64::from(*picture),
        path: format!("{picture}.png"),
        caption: format!("picture number {picture}"),
        loss_scale: scales[*picture as usize % 4],
        flip_p: 0.5,
        cond_dropout: 0.3,
        ..Default::default()
    };
    let micro_batch = |(slot, pictures): (u32, &&[u32])| v1::MicroBatch {
        slot,
        width: SIDE,
        height: SIDE,
        occurrences: pictures.iter().map(occurrence).collect(),
    };
    v1::Plan {
        generation: 1,
        epoch: 2,
        slots: SLOTS,
        slot_ranks: vec![0; SLOTS as usize],
        filled_slots: slots.len() as u32,
        micro_batches: (0..).zip(slots).map(micro_batch).collect(),
        unet_lr: 1e-3,
        text_encoder_lr: 5e-4,
        ..Default::default()
    }
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

#[test]
fn the_gradient_is_the_definition_at_every_world_size() {
    let bench = Bench::new();
    // A step with a short micro-batch, and a last step with a short micro-batch and an empty slot.
    for slots in [[&[0, 1][..], &[2], &[3, 4], &[5, 6]].as_slice(), &[&[7, 2], &[1], &[0, 3]]] {
        let plan = plan(slots);
        let (alone, losses) = bench.reduced(&plan, 1);
        for world_size in [2, 3] {
            let (shared, shared_losses) = bench.reduced(&plan, world_size);
            assert_eq!(bits(&alone), bits(&shared), "{world_size} workers");
            assert_eq!(losses, shared_losses);
        }
        let defined = bench.defined(&plan);
        let largest = defined.iter().fold(0.0_f64, |largest, value| largest.max(value.abs()));
        let error = alone.iter().zip(&defined).map(|(a, b)| (f64::from(*a) - b).abs()).fold(0.0, f64::max);
        // Sums over the batch in another order: a few roundings of f32.
        assert!(error < 2e-5 * largest, "off by {error}, the largest element is {largest}");
        assert!(losses.iter().all(|loss| loss.loss > 0.0 && loss.skipped.is_empty()));
    }
}

#[test]
fn clip_skip_and_long_captions_are_trained_and_saved() {
    let mut bench = Bench::new();
    (bench.config.model.clip_skip, bench.config.model.long_prompts) = (2, true);
    let mut plan = plan(&[&[0, 1], &[2], &[3, 4]]);
    for occurrence in plan.micro_batches.iter_mut().flat_map(|micro_batch| &mut micro_batch.occurrences) {
        occurrence.cond_dropout = 0.0;
        // 1 and 3 need two chunks and three.
        let times = [1, 30, 1, 60, 1][occurrence.position as usize];
        occurrence.caption = format!("{} ", occurrence.caption).repeat(times);
    }
    let (alone, losses) = bench.reduced(&plan, 1);
    assert_eq!(bits(&alone), bits(&bench.reduced(&plan, 3).0));
    let defined = bench.defined(&plan);
    let largest = defined.iter().fold(0.0_f64, |largest, value| largest.max(value.abs()));
    let error = alone.iter().zip(&defined).map(|(a, b)| (f64::from(*a) - b).abs()).fold(0.0, f64::max);
    assert!(error < 2e-5 * largest, "off by {error}, the largest element is {largest}");
    let short = Bench { config: RunConfig { model: Default::default(), ..bench.config.clone() }, ..Bench::new() };
    assert_ne!(losses, short.reduced(&plan, 1).1);

    // The layer that is skipped stays, whatever decay of weights there is; its neighbours move.
    bench.config.optimizer.weight_decay = 0.5;
    let mut trainer = bench.trainer();
    assert_eq!(trainer.model().text_settings(), TextSettings { clip_skip: 2, long_prompts: true });
    let before = trainer.trainable().params();
    trainer.apply(alone, 1.0, &plan);
    let after = trainer.trainable().params();
    for entry in &trainer.engine.layout.entries {
        let range = entry.offset..entry.offset + entry.len;
        let stays = entry.path.contains("text_model.encoder.layers.1.");
        assert_eq!(before[range.clone()] == after[range], stays, "{}", entry.path);
    }
    bench.config.model.clip_skip = 9;
    let model = init_model(Preset::Tiny, 5);
    let refused = Trainer::<HostEngine>::new(&bench.config, model, Encoder::new(CachedPictures::default())).err();
    let told = ballast_common::error_chain(&refused.expect("two layers"));
    assert!(told.contains("model.clip_skip") && told.contains("text encoder of 2 layers"), "{told}");
}

#[test]
fn threads_and_memory_change_no_bit() {
    let bench = Bench::new();
    let plan = plan(&[&[0, 1], &[2, 3], &[4]]);
    let mut gradients = Vec::new();
    for threads in [1, 2, 3] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        gradients.push(pool.install(|| bench.compute(&mut bench.trainer(), &plan).unwrap().parts));
    }
    let mut trainer = bench.trainer();
    let cached = CachedPictures::default();
    trainer.encoder = Encoder::new(cached.clone());
    for round in 0..2 {
        let pictures = bench.pictures(&plan, cached.clone());
        let request = Key { streams: &trainer.streams, epoch: 2, occurrence: &plan.micro_batches[0].occurrences[0] };
        assert_eq!(cached.contains(&request.picture(&plan.micro_batches[0], 0.0)), round == 1);
        gradients.push(trainer.compute(&plan, &pictures, &CancellationToken::new()).unwrap().unwrap().parts);
    }
    for other in &gradients[1..] {
        for (a, b) in gradients[0].iter().zip(other) {
            assert_eq!((a.node, bits(&a.sum)), (b.node, bits(&b.sum)));
        }
    }
}

#[test]
fn a_step_moves_the_parameters_where_they_are() {
    let bench = Bench::new();
    let mut trainer = bench.trainer();
    let places = |trainer: &Trainer<HostEngine>| {
        let mut places = Vec::new();
        trainer.engine.params().read(0..trainer.elements(), &mut |values| places.push(values.as_ptr().addr()));
        places
    };
    let (before, hash) = (places(&trainer), trainer.params_hash());
    step(&bench, &mut trainer);
    assert_ne!(trainer.params_hash(), hash);
    assert_eq!(places(&trainer), before, "something still held the model, so it was copied");
}

#[test]
fn gradient_checkpointing_changes_no_bit() {
    let mut bench = Bench::new();
    let plan = plan(&[&[0, 1], &[2, 3], &[4]]);
    for train_text_encoder in [true, false] {
        bench.config.model.train_text_encoder = train_text_encoder;
        let computed = [false, true].map(|on| {
            bench.config.model.gradient_checkpointing = on;
            bench.compute(&mut bench.trainer(), &plan).unwrap()
        });
        assert_eq!(computed[0].losses, computed[1].losses);
        for (kept, recomputed) in computed[0].parts.iter().zip(&computed[1].parts) {
            assert_eq!((kept.node, bits(&kept.sum)), (recomputed.node, bits(&recomputed.sum)));
        }
    }
}

#[test]
fn a_picture_that_cannot_be_read_counts_nothing() {
    let bench = Bench::new();
    std::fs::write(bench.folder.path().join("1.png"), "no picture").unwrap();
    let with = bench.compute(&mut bench.trainer(), &plan(&[&[0, 1]])).unwrap();
    let without = bench.compute(&mut bench.trainer(), &plan(&[&[0]])).unwrap();
    assert_eq!(bits(&with.parts[0].sum), bits(&without.parts[0].sum));
    assert_eq!((with.losses[1].weight, with.losses[1].loss), (0.0, 0.0));
    assert!(with.losses[1].skipped.contains("cannot decode the picture"));
}

#[test]
fn what_is_not_finite_is_named() {
    let bench = Bench::new();
    let mut plan = plan(&[&[0], &[1, 2]]);
    plan.micro_batches[1].occurrences[0].loss_scale = f64::INFINITY;
    let error = bench.compute(&mut bench.trainer(), &plan).unwrap_err();
    assert_eq!(error.to_string(), "the gradient of step 0, slot 1 is not finite; its pictures: 1.png, 2.png");
}

#[test]
fn a_frozen_part_does_not_move() {
    let mut bench = Bench::new();
    bench.config.model.train_unet = false;
    let mut trainer = bench.trainer();
    let before = trainer.trainable().params();
    step(&bench, &mut trainer);
    let (after, unet) = (trainer.trainable().params(), trainer.engine.layout.group_range(ParamGroup::Unet));
    assert_eq!(after[unet.clone()], before[unet.clone()]);
    assert_ne!(after[unet.end..], before[unet.end..]);
    bench.config.model.train_text_encoder = false;
    let nothing =
        Trainer::<HostEngine>::new(&bench.config, init_model(Preset::Tiny, 5), Encoder::new(CachedPictures::default()));
    assert!(matches!(nothing.err(), Some(WorkerError::NothingToTrain)));
}

/// Makes the next step on one worker.
fn step(bench: &Bench, trainer: &mut Trainer<HostEngine>) {
    let plan = v1::Plan { step: trainer.next_step, ..plan(&[&[0, 1], &[2, 3]]) };
    let mut sums = SlotSums::default();
    for part in bench.compute(trainer, &plan).unwrap().parts {
        sums.push(part.node, part.sum, add);
    }
    let gradient = sums.into_total(add).unwrap();
    let norm = global_norm(&gradient);
    trainer.apply(gradient, norm, &plan);
}

/// A trainer after two steps, and its checkpoint.
fn checkpoint(bench: &Bench) -> (Trainer<HostEngine>, PathBuf) {
    let mut trainer = bench.trainer();
    step(bench, &mut trainer);
    step(bench, &mut trainer);
    let hash = trainer.params_hash();
    let run = serde_json::json!({ "fingerprint": "abc" });
    let path = save_checkpoint(&trainer.snapshot("a run", &hash), bench.folder.path(), run).unwrap();
    (trainer, path)
}

fn resume(bench: &Bench, path: &Path) -> Result<Trainer<HostEngine>, WorkerError> {
    load(&bench.config, Some(path), Encoder::new(CachedPictures::default()), &ballast_model::cpu_device())
}

#[test]
fn a_resumed_run_goes_on_with_the_same_bits() {
    let bench = Bench::new();
    let (mut trainer, path) = checkpoint(&bench);
    assert!(path.ends_with("checkpoints/step-000002"));
    let mut resumed = resume(&bench, &path).unwrap();
    assert_eq!((resumed.next_step, resumed.params_hash()), (2, trainer.params_hash()));
    assert!(resumed.engine.optimizer == trainer.engine.optimizer);
    step(&bench, &mut trainer);
    step(&bench, &mut resumed);
    assert_eq!(resumed.params_hash(), trainer.params_hash());
    assert!(resumed.engine.optimizer == trainer.engine.optimizer);
}

#[test]
fn a_damaged_checkpoint_is_refused_by_name() {
    let bench = Bench::new();
    let (_, path) = checkpoint(&bench);
    for name in
        ["optimizer.safetensors", "model/unet/diffusion_pytorch_model.safetensors", "model/tokenizer/vocab.json"]
    {
        let file = path.join(name);
        let whole = std::fs::read(&file).unwrap();
        let mut damaged = whole.clone();
        damaged[whole.len() / 2] ^= 1;
        std::fs::write(&file, damaged).unwrap();
        let error = resume(&bench, &path).err().expect("it is damaged");
        assert!(ballast_common::error_chain(&error).contains(name), "{error}");
        std::fs::write(&file, whole).unwrap();
    }
    assert!(resume(&bench, &path).is_ok());
}

#[test]
fn the_optimizer_state_of_another_model_is_refused() {
    let mut bench = Bench::new();
    let (_, path) = checkpoint(&bench);
    bench.config.model.train_text_encoder = false;
    let error = resume(&bench, &path).err().expect("the layouts differ");
    assert!(error.to_string().contains("optimizer.safetensors"), "{error}");
}

#[test]
fn a_state_sent_in_pieces_goes_on_with_the_same_bits() {
    let bench = Bench::new();
    let (plan, norm) = (plan(&[&[0, 1], &[2, 3]]), 1.0);
    let mut source = bench.trainer();
    let (gradient, _) = bench.reduced(&plan, 1);
    source.apply(gradient.clone(), norm, &plan);
    let mut joiner = bench.trainer();
    let (elements, hash) = (source.state_elements(), source.state_hash(1));
    assert_eq!(elements, 3 * source.elements());
    assert_ne!(joiner.state_hash(1), hash);
    let piece = elements / 7 + 1;
    let mut first = 0;
    while first < elements {
        let values = source.read_state(first, piece);
        assert!(values.len() == piece || first + values.len() == elements);
        joiner.write_state(first, &values);
        first += values.len();
    }
    assert!(source.read_state(elements, piece).is_empty());
    joiner.adopt_state(1);
    assert_eq!((joiner.state_hash(1), joiner.next_step()), (hash.clone(), 1));
    assert_ne!(source.state_hash(2), hash, "the count of steps belongs to the state");
    for trainer in [&mut source, &mut joiner] {
        trainer.apply(gradient.clone(), norm, &plan);
    }
    assert_eq!(source.state_hash(2), joiner.state_hash(2));
    let parts = [&mut source, &mut joiner].map(|trainer| bench.compute(trainer, &plan).unwrap().parts);
    assert!(parts[0].iter().zip(&parts[1]).all(|(a, b)| a.sum == b.sum), "the model computes with what was sent");
}
