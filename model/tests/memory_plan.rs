//! The memory plan against counted bytes: an allocator that counts, and real passes of small models.
//!
//! What a micro-batch of two keeps more than one of one is compared, so that what does not grow with it (copies of weights,
//! the graph itself) is left out.

#![expect(unsafe_code, reason = "an allocator that counts")]

use ballast_model::memory::{MemoryRequest, Target};
use ballast_model::objective::weighted_loss;
use ballast_model::{
    Checkpoint, Compute, MicroBatch, OpenOptions, Preset, SavePrecision, StableDiffusion, Trainable, cpu_device,
    init_model, standard_normal, tensor,
};
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: everything is passed on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let live = LIVE.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        PEAK.fetch_max(live, Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn batch(model: &StableDiffusion, size: usize, latent: [usize; 2]) -> MicroBatch {
    let shape = [size, 4, latent[0], latent[1]];
    let normal = |name| tensor(standard_normal(1, "test", name, shape.iter().product()), shape, &cpu_device());
    MicroBatch {
        latents: normal("latents"),
        noise: normal("noise"),
        timesteps: vec![500; size],
        token_ids: vec![model.tokenizer.encode("a red disc"); size],
        weights: vec![1.0; size],
    }
}

/// Bytes that a forward pass leaves behind, and the most that were there until the gradient was.
fn counted(model: &StableDiffusion, trainable: &Trainable, size: usize, latent: [usize; 2]) -> [i64; 2] {
    let batch = batch(model, size, latent);
    let before = LIVE.load(Ordering::Relaxed) as i64;
    PEAK.store(before as usize, Ordering::Relaxed);
    let loss = weighted_loss(&trainable.unet, &trainable.text_encoder, &model.noise_scheduler, batch, 1.0);
    let kept = LIVE.load(Ordering::Relaxed) as i64 - before;
    drop(trainable.gradient(loss.scalar));
    [kept, PEAK.load(Ordering::Relaxed) as i64 - before]
}

/// The most bytes that were there at once, with recomputation.
fn counted_again(model: &StableDiffusion, trainable: &Trainable, size: usize, latent: [usize; 2]) -> i64 {
    let batch = batch(model, size, latent);
    let before = LIVE.load(Ordering::Relaxed);
    PEAK.store(before, Ordering::Relaxed);
    drop(trainable.loss_and_gradient(&model.noise_scheduler, batch, 1.0, true));
    (PEAK.load(Ordering::Relaxed) - before) as i64
}

/// One test, since there is one allocator; and one thread, since each keeps buffers of its own.
#[test]
fn the_plan_agrees_with_counted_bytes() {
    rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap().install(|| {
        compare();
        compare_copies();
    });
}

const REQUEST: MemoryRequest = MemoryRequest {
    micro_batch_size: 1,
    slots: 1,
    has_peers: false,
    bucket: [64, 64],
    train_unet: true,
    train_text_encoder: true,
    recomputation: false,
    compute: Compute::F32,
    target: Target::Cpu,
};

fn opened(model: &StableDiffusion) -> Checkpoint {
    let folder = tempfile::tempdir().unwrap();
    model.save_diffusers(folder.path(), SavePrecision::Fp32).unwrap();
    Checkpoint::open(folder.path(), &OpenOptions::default()).unwrap()
}

fn compare() {
    let mut wrong = Vec::new();
    for (preset, latent) in
        [(Preset::Tiny, [16, 16]), (Preset::Tiny, [13, 24]), (Preset::TinyV2, [16, 24]), (Preset::Small, [16, 16])]
    {
        let model = init_model(preset, 7);
        let checkpoint = opened(&model);
        for train_text_encoder in [false, true] {
            let trainable = Trainable::new(model.unet.clone(), model.text_encoder.clone(), train_text_encoder);
            let plan = |micro_batch_size, recomputation| {
                let bucket = latent.map(|side| 8 * side as u64);
                checkpoint.memory(&MemoryRequest {
                    micro_batch_size,
                    bucket,
                    train_text_encoder,
                    recomputation,
                    ..REQUEST
                })
            };
            counted(&model, &trainable, 2, latent); // pools and tables of the first pass
            let [two, one] = [2, 1].map(|size| counted(&model, &trainable, size, latent));
            let (kept, peak) = (two[0] - one[0], two[1] - one[1]);
            let planned = (plan(2, false).activations - plan(1, false).activations) as i64;
            let planned_peak = (plan(2, false).total - plan(1, false).total) as i64;
            let name = format!("{preset:?} {latent:?}, text encoder {train_text_encoder}");
            println!("{name}: kept {kept}, planned {planned}; peak {peak}, planned {planned_peak}");
            if (planned - kept).abs() * 100 > kept * 5 {
                wrong.push(format!("{name}: {kept} bytes are kept, {planned} planned"));
            }
            if peak * 100 > planned_peak * 115 {
                wrong.push(format!("{name}: the peak grows by {peak}, {planned_peak} planned"));
            }
            let [two, one] = [2, 1].map(|size| counted_again(&model, &trainable, size, latent));
            let planned = (plan(2, true).total - plan(1, true).total) as i64;
            println!("{name}, recomputed: peak {}, planned {planned}", two - one);
            if (two - one) * 100 > planned * 115 {
                wrong.push(format!("{name}, recomputed: the peak grows by {}, {planned} planned", two - one));
            }
        }
        let planned = checkpoint.memory(&REQUEST).optimizer as usize / 8; // AdamW has 8 bytes for each parameter
        assert_eq!(planned, parameters(&model), "{preset:?}");
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// What a forward pass in bf16 leaves behind whatever the size of the micro-batch: the rounded weights, and about a megabyte
/// of the graph itself, since the CPU builds norms in bf16 from burn's operations.
fn compare_copies() {
    let mut model = init_model(Preset::Small, 7);
    model.compute_in(Compute::Bf16);
    let checkpoint = opened(&model);
    for train_text_encoder in [false, true] {
        let trainable = Trainable::new(model.unet.clone(), model.text_encoder.clone(), train_text_encoder);
        let request = MemoryRequest { train_text_encoder, compute: Compute::Bf16, target: Target::Cuda, ..REQUEST };
        let planned = checkpoint.memory(&request).copies as i64;
        counted(&model, &trainable, 1, [8, 8]);
        let [two, one] = [2, 1].map(|size| counted(&model, &trainable, size, [8, 8])[0]);
        let copies = 2 * one - two;
        println!("text encoder {train_text_encoder}: copies of {copies} bytes, planned {planned}");
        let is_near = (planned..planned + (2 << 20)).contains(&copies);
        assert!(is_near, "{copies} bytes of copies and graph, planned {planned}");
    }
}

fn parameters(model: &StableDiffusion) -> usize {
    Trainable::new(model.unet.clone(), model.text_encoder.clone(), true).layout().total
}
