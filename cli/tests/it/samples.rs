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
fn every_sampler_draws_and_the_picture_says_how() {
    let lab = Lab::without_model();
    let model = reference().folder.join("final");
    let model = model.to_str().unwrap();
    let size = ["--steps", "3", "--width", "64", "--height", "64", "--prompt", "a boat, größer"];
    let draw = |out: &str, more: &[&str]| {
        lab.run(&[&["sample", "--model", model, "--out", out], &size[..], more].concat()).expect(0);
        image::open(lab.path(out)).unwrap().to_rgb8()
    };
    let settings = |file: &str| {
        let bytes = std::fs::read(lab.path(file)).unwrap();
        let start = bytes.windows(15).position(|window| window == b"tEXtparameters\0").expect("a text chunk") + 15;
        let length = u32::from_be_bytes(bytes[start - 19..start - 15].try_into().unwrap()) as usize - 11;
        bytes[start..start + length].iter().map(|byte| char::from(*byte)).collect::<String>()
    };
    let mut seen = Vec::new();
    for (sampler, title) in
        [("ddim", "DDIM"), ("euler", "Euler"), ("euler-a", "Euler a"), ("dpmpp-2m", "DPM++ 2M, Schedule type: Karras")]
    {
        let picture = draw("a.png", &["--sampler", sampler, "--negative", "fog", "--seed", "7"]);
        assert!(!seen.contains(&picture), "{sampler} draws its own picture");
        assert_eq!(
            settings("a.png"),
            format!(
                "a boat, größer\nNegative prompt: fog\n\
                 Steps: 3, Sampler: {title}, CFG scale: 5, Seed: 7, Size: 64x64"
            )
        );
        seen.push(picture);
    }
    let again = draw("b.png", &["--sampler", "euler-a", "--negative", "fog", "--seed", "7"]);
    assert_eq!(again, seen[2], "the same seed, the same picture, new noise in each step or not");
    // And the same among others, as the second of three.
    lab.run(
        &[
            &["sample", "--model", model, "--out", "many", "--count", "3", "--seed", "6", "--negative", "fog"][..],
            &["--sampler", "euler-a"][..],
            &size,
        ]
        .concat(),
    )
    .expect(0);
    assert_eq!(image::open(lab.path("many/01_seed7_a_boat__größer.png")).unwrap().to_rgb8(), seen[2]);
    let sheet = draw("sheet.png", &["--sheet", "--count", "4", "--columns", "2"]);
    assert_eq!(sheet.dimensions(), (2 * 72 + 8, 2 * 72 + 8));
    assert!(settings("sheet.png").contains("Seed: 1, "));

    let refused = |more: &[&str], says: &str| {
        lab.run(&[&["sample", "--model", model, "--out", "x.png"], &size[..], more].concat()).expect(2).says(&[says]);
    };
    refused(&["--sampler", "heun"], "euler-a");
    refused(&["--sigmas", "karras"], "dpmpp-2m");
    refused(&["--clip-skip", "50"], "clip skip");
    refused(&["--guidance-rescale", "2"], "from 0 to 1");
    refused(&["--guidance", "-1"], "from 0 to 100");
    refused(&["--count", "2"], "2 pictures need a folder");
    refused(&["--ema"], "no EMA weights");
    assert!(!lab.path("x.png").exists());
}

#[test]
fn a_prompt_that_is_cut_off_is_named() {
    let lab = Lab::without_model();
    let model = reference().folder.join("final");
    let long = "a boat on the sea ".repeat(30);
    let args = ["--steps", "1", "--width", "64", "--height", "64", "--prompt", &long, "--prompt", "short"];
    let run = |more: &[&str]| {
        lab.run(&[&["sample", "--model", model.to_str().unwrap(), "--out", "out"], &args[..], more].concat()).expect(0)
    };
    run(&[]).says(&["tokens of this prompt are not used", long.trim()]);
    assert!(!run(&["--long-prompts"]).stderr.contains("not used"));
}

#[test]
fn a_run_draws_with_its_sampler_and_names_a_caption_that_is_cut_off() {
    let lab = Lab::new();
    let long = "a boat on the sea ".repeat(30);
    lab.write("data/boats/picture_0.txt", &long);
    let settings = ["run.epochs=1", "data.cond_dropout=0", "sample.sampler=dpmpp-2m", "sample.at_start=false"];
    let settings: Vec<&str> = settings.iter().flat_map(|setting| ["--set", setting]).collect();
    let finished = lab.start_train("run", &[&["--workers", "1"], &settings[..]].concat()).finish().expect(0);
    let told: Vec<&str> = finished.stderr.lines().filter(|line| line.contains("more than 75 tokens")).collect();
    assert!(told.len() == 1 && told[0].contains(long.trim()), "{}", finished.stderr);
    let samples = lab.run_of("run").folder.join("samples");
    let of_run = std::fs::read_dir(samples).unwrap().next().unwrap().unwrap().path();
    let sample = ["sample", "--model", "runs/run/final", "--prompt", "a boat", "--sampler", "dpmpp-2m"];
    let size = ["--steps", "2", "--width", "64", "--height", "64", "--seed", "1", "--out", "one.png"];
    lab.run(&[&sample[..], &size].concat()).expect(0);
    // Pixels and settings: the files are the same to the last byte.
    assert!(std::fs::read(lab.path("one.png")).unwrap() == std::fs::read(of_run).unwrap());
}

#[test]
fn a_model_is_drawn_with_as_it_was_trained() {
    let lab = Lab::new();
    let long = "a boat on the sea ".repeat(30);
    lab.write("data/boats/picture_0.txt", &long);
    let prompt = format!("sample.prompts=['{long}']");
    let settings = [
        "run.epochs=1",
        "data.cond_dropout=0",
        "sample.at_start=false",
        "model.clip_skip=2",
        "model.long_prompts=true",
    ];
    let settings: Vec<&str> = settings.iter().chain([&prompt.as_str()]).flat_map(|s| ["--set", *s]).collect();
    let finished = lab.start_train("run", &[&["--workers", "2"], &settings[..]].concat()).finish().expect(0);
    assert!(!finished.stderr.contains("more than 75 tokens"), "{}", finished.stderr);
    let config = std::fs::read_to_string(lab.path("runs/run/config.toml")).unwrap();
    assert!(config.contains("clip_skip = 2\nlong_prompts = true\n"), "{config}");
    let of_run = std::fs::read_dir(lab.run_of("run").folder.join("samples")).unwrap().next().unwrap().unwrap().path();
    let draw = |model: &str, out: &str, more: &[&str]| {
        let sample = ["sample", "--model", model, "--prompt", &long, "--steps", "2", "--width", "64", "--height", "64"];
        lab.run(&[&sample[..], &["--seed", "1", "--out", out], more].concat()).expect(0);
        std::fs::read(lab.path(out)).unwrap()
    };
    let drawn = draw("runs/run/final", "a.png", &[]);
    assert!(drawn == std::fs::read(of_run).unwrap(), "the folder knows how it was trained");
    assert!(drawn == draw("runs/run/final.safetensors", "b.png", &[]), "so does the single file");
    let pixels = |name: &str| image::open(lab.path(name)).unwrap().to_rgb8();
    draw("runs/run/final", "c.png", &["--clip-skip", "1"]);
    draw("runs/run/final", "d.png", &["--long-prompts=false"]);
    assert!(pixels("c.png") != pixels("a.png") && pixels("d.png") != pixels("a.png"));

    let refused = lab.start_train("other", &["--set", "model.clip_skip=5"]).finish().expect(2);
    refused.says(&["model.clip_skip", "clip skip of 5 is too much for a text encoder of 2 layers"]);
    assert!(!lab.path("runs/other").exists());
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
