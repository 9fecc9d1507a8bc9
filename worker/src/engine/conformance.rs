//! What every engine has to do, and that all do the same: run over each, in the host's memory and on a simulated accelerator.
//!
//! A build with the feature `cuda` runs it on a GPU too, where `BALLAST_TEST_DEVICE` names one (`cuda:0`).

use ballast_common::config::OptimizerConfig;
use ballast_model::accelerator::simulated::Simulated;
use ballast_model::adamw::Group;
use ballast_model::{Compute, Device, Preset, init_model, standard_normal, tensor};
use burn::module::Module as _;

use super::device::DeviceEngine;
use super::*;
use crate::collective::Reduction;
use crate::collective::tree::{Node, SlotSums};

type OnSimulated = DeviceEngine<Simulated>;

/// Where an engine's model lies.
trait OnDevice: Engine {
    fn device() -> Device {
        ballast_model::cpu_device()
    }
}

impl OnDevice for HostEngine {}

impl OnDevice for OnSimulated {}

/// Shares of the running means that are lost at once, so that a wrong moment shows in the parameters.
fn optimizer() -> OptimizerConfig {
    OptimizerConfig { beta1: 0.5, beta2: 0.75, weight_decay: 0.1, ..OptimizerConfig::default() }
}

fn engine<E: OnDevice>(train_text_encoder: bool) -> E {
    engine_in(train_text_encoder, Compute::F32)
}

fn engine_in<E: OnDevice>(train_text_encoder: bool, compute: Compute) -> E {
    let mut model = init_model(Preset::Tiny, 3);
    model.compute_in(compute);
    if E::device() != model.device() {
        model.unet = model.unet.to_device(&E::device());
        model.text_encoder = model.text_encoder.to_device(&E::device());
    }
    let layout = model.trained_layout(train_text_encoder);
    E::new(model, layout, &optimizer()).unwrap()
}

/// Captions of two lengths where the text encoder takes long ones.
fn batch(model: &StableDiffusion, number: u64, weight: f32) -> MicroBatch {
    let shape = [2, 4, 8, 8];
    let normal = |name: &str| {
        let values = standard_normal(number, "engine", name, shape.iter().product());
        tensor(values, shape, &model.device())
    };
    MicroBatch {
        latents: normal("latents"),
        noise: normal("noise"),
        timesteps: vec![10 + number as u32, 600],
        token_ids: ["a wuzzle", "two klonks in the snow"].map(|text| model.tokenizer.encode(text)).to_vec(),
        weights: vec![weight, 0.5],
    }
}

fn trainable<E: Engine>(engine: &E, train_text_encoder: bool) -> Trainable {
    let StableDiffusion { unet, text_encoder, .. } = engine.model();
    Trainable::new(unet.clone(), text_encoder.clone(), train_text_encoder)
}

const PASS: Pass = Pass { normaliser: 4.0, recomputation: false, trains_unet: true };

fn gradient<E: Engine>(engine: &E, train_text_encoder: bool, number: u64, pass: Pass) -> (Vec<f32>, E::Flat) {
    let batch = batch(engine.model(), number, 1.0);
    let (losses, gradient) =
        engine.forward_backward(&trainable(engine, train_text_encoder), batch, pass).expect("it is finite");
    (engine.losses(losses).expect("it is finite"), gradient)
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

fn params<E: Engine>(engine: &E) -> Vec<f32> {
    let mut row = Vec::new();
    engine.read_params(0..engine.layout().total, &mut |values| row.extend_from_slice(values));
    row
}

fn moment<E: Engine>(engine: &E, moment: Moment) -> Vec<f32> {
    let mut row = Vec::new();
    engine.read_moment(moment, 0..engine.layout().total, &mut |values| row.extend_from_slice(values));
    row
}

fn groups<E: Engine>(engine: &E, train_text_encoder: bool) -> Vec<Group> {
    use ballast_model::ParamGroup::{TextEncoder, Unet};
    let mut groups = vec![Group { range: engine.layout().group_range(Unet), lr: 1e-2 }];
    if train_text_encoder {
        // Without the last parameter, as where a layer is skipped.
        let range = engine.layout().group_range(TextEncoder);
        let last = engine.layout().entries.last().expect("there are parameters");
        groups.push(Group { range: range.start..last.offset, lr: 3e-2 });
    }
    groups
}

/// What three steps leave: losses, parameters and both moments.
fn train<E: OnDevice>(train_text_encoder: bool, recomputation: bool, compute: Compute) -> [Vec<u32>; 4] {
    let mut engine: E = engine_in(train_text_encoder, compute);
    let mut losses = Vec::new();
    for step in 1..=3 {
        let trains_unet = step < 3 || !train_text_encoder;
        let (found, left) = gradient(&engine, train_text_encoder, step, Pass { recomputation, trains_unet, ..PASS });
        losses.extend(found);
        let (_, right) = gradient(&engine, train_text_encoder, 10 + step, Pass { recomputation, ..PASS });
        let sum = engine.add(left, right);
        // The norm of the wire, clipped, not clipped, and not to be clipped.
        let (norm, norm_max) = [(2.5, 1.0), (0.5, 1.0), (2.5, 0.0)][step as usize - 1];
        let groups = groups(&engine, train_text_encoder);
        engine.apply(sum, norm, norm_max, step, &groups);
    }
    [
        bits(&losses),
        bits(&params(&engine)),
        bits(&moment(&engine, Moment::First)),
        bits(&moment(&engine, Moment::Second)),
    ]
}

#[test]
fn every_engine_trains_to_the_same_bits() {
    use Compute::{Bf16, F32};
    for how in [(true, false, F32), (true, true, F32), (false, false, F32), (true, false, Bf16), (true, true, Bf16)] {
        let (train_text_encoder, recomputation, compute) = how;
        let host = train::<HostEngine>(train_text_encoder, recomputation, compute);
        let device = train::<OnSimulated>(train_text_encoder, recomputation, compute);
        assert!(host == device, "text encoder, recomputation and precision: {how:?}");
    }
}

#[test]
fn captions_of_different_lengths_are_added_up() {
    fn sum<E: OnDevice>() -> Vec<u32> {
        let mut engine: E = engine(true);
        let mut batch = batch(engine.model(), 1, 1.0);
        let longer = batch.token_ids[1].clone();
        batch.token_ids[1].extend(longer);
        for recomputation in [false, true] {
            let pass = Pass { recomputation, ..PASS };
            let (losses, gradient) =
                engine.forward_backward(&trainable(&engine, true), batch.clone(), pass).expect("it is finite");
            engine.losses(losses).expect("it is finite");
            let groups = groups(&engine, true);
            engine.apply(gradient, 1.0, 0.0, 1, &groups);
        }
        bits(&params(&engine))
    }
    assert!(sum::<HostEngine>() == sum::<OnSimulated>());
}

/// Over each engine.
macro_rules! each_engine {
    ($($(#[$meta:meta])* fn $name:ident<$engine:ident>() $body:block)*) => {$(
        #[test]
        $(#[$meta])*
        fn $name() {
            fn check<$engine: OnDevice>() $body
            check::<HostEngine>();
            check::<OnSimulated>();
            #[cfg(feature = "cuda")]
            if gpu::name().is_some() {
                check::<gpu::OnGpu>();
            }
        }
    )*};
}

each_engine! {
    fn any_piece_of_the_state_is_read_and_written<E>() {
        let mut engine: E = engine(true);
        let total = engine.layout().total;
        let mut rows = [params(&engine), moment(&engine, Moment::First), moment(&engine, Moment::Second)];
        assert_eq!(bits(&rows[0]), bits(&trainable(&engine, true).params()));
        assert!(rows[1..].iter().flatten().all(|value| *value == 0.0));
        let second = engine.layout().entries[1].offset;
        for (section, (first, count)) in [(0, 1), (second - 1, 2), (7, total - 9), (total, 0), (3, 5)].into_iter().enumerate() {
            let values: Vec<f32> = (0..count).map(|i| (i + section) as f32 * 0.37).collect();
            let read = |engine: &E, section: usize| {
                let mut piece = Vec::new();
                let mut sink = |values: &[f32]| piece.extend_from_slice(values);
                match section {
                    0 => engine.read_params(first..first + count, &mut sink),
                    section => engine.read_moment(Moment::ALL[section - 1], first..first + count, &mut sink),
                }
                piece
            };
            for (section, row) in rows.iter_mut().enumerate() {
                assert_eq!(read(&engine, section), row[first..first + count]);
                row[first..first + count].copy_from_slice(&values);
                match section {
                    0 => engine.write_params(first, &values),
                    section => engine.write_moment(Moment::ALL[section - 1], first, &values),
                }
                assert_eq!(read(&engine, section), values);
            }
        }
        let found = [params(&engine), moment(&engine, Moment::First), moment(&engine, Moment::Second)];
        assert!(found == rows, "the rest stays");
        assert_eq!(bits(&rows[0]), bits(&trainable(&engine, true).params()), "the model computes with what was written");
    }

    fn what_is_not_finite_is_named<E>() {
        let engine: E = engine(true);
        let run = |weight, spoil: bool| {
            let mut batch = batch(engine.model(), 1, weight);
            if spoil {
                batch.noise = batch.noise * f32::INFINITY;
            }
            let (losses, _) = engine.forward_backward(&trainable(&engine, true), batch, PASS)?;
            engine.losses(losses)
        };
        assert!(run(1.0, false).is_ok_and(|losses| losses.len() == 2 && losses.iter().all(|loss| *loss > 0.0)));
        assert_eq!(run(f32::INFINITY, false), Err("gradient"));
        assert_eq!(run(1.0, true), Err("loss"));
    }

    fn a_sum_is_known_by_its_norm_and_its_bits<E>() {
        let engine: E = engine(false);
        let alone = |parts: Vec<(u32, E::Flat)>| {
            let mut collective = engine.collective(Formed::Alone(CancellationToken::new()));
            let mut own = SlotSums::default();
            for (slot, part) in parts {
                own.push(Node::leaf(slot), part, |left, right| engine.add(left, right));
            }
            let own = own.into_parts();
            let slots = own.iter().map(|part| 1 << part.node.level).sum::<usize>();
            let reduction = Reduction { step: 1, slot_ranks: &vec![0; slots], elements: engine.flat_elements() };
            engine.measure(&collective.all_reduce(reduction, own).unwrap())
        };
        let slot = |number| gradient(&engine, false, number, PASS).1;
        let one = alone(vec![(0, slot(1))]);
        let expected = trainable(&engine, false)
            .loss_and_gradient(&engine.model().noise_scheduler, batch(engine.model(), 1, 1.0), 4.0, false)
            .1.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt();
        assert!((one.norm / expected - 1.0).abs() < 1e-12, "{} is not {expected}", one.norm);
        assert_eq!(one, alone(vec![(0, slot(1))]));
        let other = alone(vec![(0, slot(2))]);
        assert_ne!((one.norm, &one.hash), (other.norm, &other.hash));
        // Three slots: (0 + 1) + 2, in that order.
        let three = alone(vec![(0, slot(1)), (1, slot(2)), (2, slot(3))]);
        let by_hand = engine.add(engine.add(slot(1), slot(2)), slot(3));
        assert_eq!(three, engine.measure(&by_hand));
        let nothing = alone(vec![]);
        assert_eq!(nothing.norm, 0.0);
        assert_ne!(nothing.hash, one.hash);
    }

    fn a_collective_of_the_host_adds_up_too<E>() {
        let engine: E = engine(false);
        let slot = |number| gradient(&engine, false, number, PASS).1;
        let reduce = |formed| {
            let parts = [(0, slot(1)), (1, slot(2)), (2, slot(3))];
            let mut own = SlotSums::default();
            for (slot, part) in parts {
                own.push(Node::leaf(slot), part, |left, right| engine.add(left, right));
            }
            let reduction = Reduction { step: 1, slot_ranks: &[0, 0, 0], elements: engine.flat_elements() };
            let sum = engine.collective(formed).all_reduce(reduction, own.into_parts()).unwrap();
            engine.measure(&sum)
        };
        let token = CancellationToken::new();
        let host = Formed::Host(Box::new(collective::Local::new(token.clone())));
        assert_eq!(reduce(host), reduce(Formed::Alone(token)));
    }

    fn the_optimizer_goes_through_the_host<E>() {
        let mut source: E = engine(true);
        let (_, sum) = gradient(&source, true, 1, PASS);
        let groups = groups(&source, true);
        source.apply(sum, 1.0, 1.0, 1, &groups);
        let saved = source.optimizer().into_owned();
        assert_eq!(saved.exp_avg, moment(&source, Moment::First));
        assert_eq!(saved.exp_avg_sq, moment(&source, Moment::Second));
        assert!(saved.exp_avg.iter().any(|value| *value != 0.0));
        let mut resumed: E = engine(true);
        resumed
            .change_optimizer(|layout, optimizer| {
                assert_eq!(layout.total, optimizer.exp_avg.len());
                *optimizer = saved.clone();
                Ok(())
            })
            .unwrap();
        assert!(resumed.optimizer().into_owned() == saved);
        let refused = resumed.change_optimizer(|_, _| Err(WorkerError::NothingToTrain));
        assert!(matches!(refused, Err(WorkerError::NothingToTrain)));
    }
}

#[test]
fn an_accelerator_waits_only_where_it_must() {
    let mut engine: OnSimulated = engine(true);
    let asked = || engine.device().asked();
    let before = asked();
    let started: Vec<_> = (0..3)
        .map(|number| {
            let batch = batch(engine.model(), number, 1.0);
            engine.forward_backward(&trainable(&engine, true), batch, PASS).expect("it is finite")
        })
        .collect();
    assert_eq!(asked().waits, before.waits, "slots are started without a wait");
    let mut sum: Option<_> = None;
    for (losses, gradient) in started {
        engine.losses(losses).expect("it is finite");
        sum = Some(match sum.take() {
            Some(sum) => engine.add(sum, gradient),
            None => gradient,
        });
    }
    let sum = sum.expect("three slots");
    let before = asked();
    let Measure { norm, .. } = engine.measure(&sum);
    let after = asked();
    assert_eq!(after.waits, before.waits + 1);
    let transfer = after.bytes_down - before.bytes_down;
    assert!(transfer < engine.flat_elements() as u64 / 100, "{transfer} bytes are not a few");
    let groups = groups(&engine, true);
    engine.apply(sum, norm, 1.0, 1, &groups);
    assert_eq!(asked_of(&engine).waits, after.waits, "the parameters move without a wait");
    // Parameters and two moments, each padded, and nothing of the step.
    let held = asked_of(&engine).bytes_held;
    assert_eq!(held, 3 * 4 * engine.flat_elements() as u64);
}

fn asked_of(engine: &OnSimulated) -> ballast_model::accelerator::simulated::Counts {
    engine.device().asked()
}

#[cfg(feature = "cuda")]
mod gpu {
    use ballast_model::cuda::CubeMemory;

    use super::*;

    pub(super) type OnGpu = DeviceEngine<CubeMemory>;

    /// The GPU to test on.
    pub(super) fn name() -> Option<String> {
        std::env::var("BALLAST_TEST_DEVICE").ok().filter(|name| name.starts_with("cuda:"))
    }

    impl OnDevice for OnGpu {
        fn device() -> Device {
            let name = name().expect("asked for before");
            let index = name["cuda:".len()..].parse::<usize>().expect("BALLAST_TEST_DEVICE is cuda:N");
            Device::cuda(index)
        }
    }

    /// The relative difference of two vectors.
    fn difference(found: &[u32], right: &[u32]) -> f64 {
        let value = |bits: &u32| f64::from(f32::from_bits(*bits));
        let (mut apart, mut size) = (0.0, 0.0);
        for (found, right) in found.iter().zip(right) {
            apart += (value(found) - value(right)).powi(2);
            size += value(right).powi(2);
        }
        (apart / size).sqrt()
    }

    /// Matrix products round otherwise on a GPU (TF32 keeps 11 bits), and AdamW turns the smallest gradients into whole steps.
    #[test]
    fn a_gpu_trains_as_the_host_does() {
        if name().is_none() {
            return;
        }
        for recomputation in [false, true] {
            let [losses, params, first, second] = train::<OnGpu>(true, recomputation, Compute::F32);
            let right = train::<HostEngine>(true, recomputation, Compute::F32);
            assert_eq!([losses.len(), params.len()], [right[0].len(), right[1].len()]);
            let found = [difference(&losses, &right[0]), difference(&first, &right[2]), difference(&second, &right[3])];
            assert!(found[0] < 5e-3 && found[1] < 5e-2 && found[2] < 1e-1, "losses and moments are off by {found:?}");
            assert!(difference(&params, &right[1]) < 5e-2);
            // The same again gives the same bits.
            assert!([losses, params, first, second] == train::<OnGpu>(true, recomputation, Compute::F32));
        }
    }
}
