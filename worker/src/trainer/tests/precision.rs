//! `precision.compute` through the worker: what is computed in it, and what is not.

use ballast_common::config::ComputePrecision;

use super::*;

fn relative(actual: &[f32], expected: &[f32]) -> f64 {
    let squares = |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>();
    let off = squares(&mut actual.iter().zip(expected).map(|(a, e)| f64::from(a - e)));
    (off / squares(&mut expected.iter().map(|value| f64::from(*value)))).sqrt()
}

#[test]
fn bf16_is_computed_in_where_the_config_says_so() {
    let mut bench = Bench::new();
    let plan = plan(&[&[0, 1], &[2, 3]]);
    let mut computed = Vec::new();
    for compute in [ComputePrecision::Auto, ComputePrecision::Fp32, ComputePrecision::Bf16] {
        bench.config.precision.compute = compute;
        computed.push(bench.compute(&mut bench.trainer(), &plan).unwrap());
    }
    let [auto, full, found] = [&computed[0], &computed[1], &computed[2]];
    let off = relative(&found.parts[0].sum, &full.parts[0].sum);
    assert!(bits(&auto.parts[0].sum) == bits(&full.parts[0].sum), "the CPU computes in f32 unless told otherwise");
    assert!(off > 1e-4 && off < 0.05, "the gradient in bf16 is {off} from that in f32");
    for (found, full) in found.losses.iter().zip(&full.losses) {
        assert!((found.loss / full.loss - 1.0).abs() < 0.01, "{found:?} instead of {full:?}");
    }
}

#[test]
fn parameters_stay_f32_and_a_resumed_run_has_the_same_bits() {
    let mut bench = Bench::new();
    bench.config.precision.compute = ComputePrecision::Bf16;
    let (mut trainer, path) = checkpoint(&bench);
    let mut rounded = 0;
    trainer.engine.params().read(0..trainer.elements(), &mut |values| {
        rounded += values.iter().filter(|value| value.to_bits() & 0xFFFF == 0).count();
    });
    assert!(rounded * 10 < trainer.elements(), "{rounded} of {} parameters are rounded", trainer.elements());
    let mut resumed = resume(&bench, &path).unwrap();
    step(&bench, &mut trainer);
    bench.config.model.gradient_checkpointing = true;
    let mut again = resume(&bench, &path).unwrap();
    step(&bench, &mut resumed);
    step(&bench, &mut again);
    assert_eq!([resumed.params_hash(), again.params_hash()], [trainer.params_hash(), trainer.params_hash()]);
}

#[test]
fn pictures_are_drawn_in_it() {
    let mut bench = Bench::new();
    bench.config.sample.prompts = vec!["a blue bird".to_owned()];
    bench.config.sample.steps = 3;
    (bench.config.sample.width, bench.config.sample.height) = (Some(64), Some(64));
    let pictures = [ComputePrecision::Fp32, ComputePrecision::Bf16].map(|compute| {
        bench.config.precision.compute = compute;
        let folder = tempfile::tempdir().unwrap();
        let (paths, error) = crate::samples::draw(bench.trainer().model(), &bench.config, 1, &[0], folder.path());
        assert_eq!(error, None);
        image::open(&paths[0]).unwrap().to_rgb8().into_raw()
    });
    let off = pictures[0].iter().zip(&pictures[1]).map(|(a, b)| f64::from(a.abs_diff(*b))).sum::<f64>();
    let mean = off / pictures[0].len() as f64;
    assert!(mean > 0.0 && mean < 5.0, "pixels differ by {mean} of 255 on average");
}
