//! Pictures: those of the run, those of `ballast sample`, and the layouts of the trained model.

use safetensors::SafeTensors;

use crate::lab::{Lab, reference};

#[test]
fn a_trained_model_draws_the_picture_of_the_run_again() {
    let lab = Lab::without_model();
    let model = reference().folder.join("final");
    let model = model.to_str().unwrap();
    let args = ["--prompt", "a boat", "--steps", "2", "--width", "64", "--height", "64", "--seed", "1"];
    lab.run(&[&["sample", "--model", model, "--out", "one.png"], &args[..]].concat()).expect(0);
    let drawn = image::open(lab.path("one.png")).unwrap().to_rgb8();
    assert_eq!(drawn.dimensions(), (64, 64));
    let mut of_run: Vec<_> =
        std::fs::read_dir(reference().folder.join("samples")).unwrap().map(|e| e.unwrap().path()).collect();
    of_run.sort();
    assert_eq!(of_run.len(), 2, "one before the first step, one after the last: {of_run:?}");
    assert_eq!(drawn, image::open(&of_run[1]).unwrap().to_rgb8());
    assert_ne!(drawn, image::open(&of_run[0]).unwrap().to_rgb8());

    lab.run(
        &[&["sample", "--sheet", "--model", model, "--model", model, "--count", "3", "--out", "sheet.png"], &args[..]]
            .concat(),
    )
    .expect(0);
    assert_eq!(image::open(lab.path("sheet.png")).unwrap().to_rgb8().dimensions(), (3 * 72 + 8, 2 * 72 + 8));
    lab.run(&[&["sample", "--model", model, "--count", "2", "--out", "many"], &args[..]].concat()).expect(0);
    assert_eq!(std::fs::read_dir(lab.path("many")).unwrap().count(), 2);
    lab.run(&["sample", "--model", model, "--prompt", "x", "--width", "60", "--out", "x.png"]).expect(2).says(&["60"]);
}

#[test]
fn the_single_file_has_the_original_key_names() {
    let bytes = reference().bytes("final.safetensors");
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    for prefix in ["model.diffusion_model.", "first_stage_model.", "cond_stage_model."] {
        assert!(tensors.names().iter().any(|name| name.starts_with(prefix)), "{prefix}");
    }
    for file in
        ["model_index.json", "unet/config.json", "unet/diffusion_pytorch_model.safetensors", "tokenizer/vocab.json"]
    {
        assert!(reference().folder.join("final").join(file).is_file(), "{file}");
    }
}

#[test]
fn the_same_seed_makes_the_same_model() {
    let lab = Lab::without_model();
    let weights = |out: &str, seed: &str| {
        lab.run(&["init-model", "tiny", "--out", out, "--seed", seed]).expect(0);
        std::fs::read(lab.path(out).join("unet/diffusion_pytorch_model.safetensors")).unwrap()
    };
    let first = weights("a", "3");
    assert!(first == weights("b", "3") && first != weights("c", "4"));
    lab.run(&["init-model", "tiny", "--out", "a"]).expect(2).says(&["exists"]);
    lab.run(&["init-model", "huge", "--out", "d"]).expect(2).says(&["huge"]);
}
