//! `ballast convert`, and a model in one file wherever a model is named.

use crate::lab::Lab;

/// The parts of a model's folder whose bytes tell.
const FILES: [&str; 5] = [
    "unet/diffusion_pytorch_model.safetensors",
    "vae/diffusion_pytorch_model.safetensors",
    "text_encoder/model.safetensors",
    "text_encoder/config.json",
    "tokenizer/vocab.json",
];

fn read(lab: &Lab, name: &str) -> Vec<u8> {
    let path = lab.path(name);
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn there_and_back_gives_the_same_files() {
    let lab = Lab::new();
    let finished = lab.run(&["convert", "model", "single.safetensors"]).expect(0);
    assert_eq!((finished.stdout.trim_end(), finished.stderr.as_str()), ("single.safetensors", ""));
    lab.run(&["convert", "single.safetensors", "models/again"]).expect(0);
    for name in FILES {
        assert!(read(&lab, &format!("models/again/{name}")) == read(&lab, &format!("model/{name}")), "{name}");
    }
    lab.run(&["convert", "models/again", "half", "--to", "single-file", "--precision", "fp16"]).expect(0);
    let [full, half] = ["single.safetensors", "half"].map(|name| read(&lab, name).len());
    assert!(half < full * 6 / 10, "{half} of {full}");
}

#[test]
fn what_a_model_is_can_be_asked_without_writing() {
    let lab = Lab::new();
    lab.run(&["convert", "model", "single.safetensors", "--precision", "bf16", "--metadata", "modelspec.author=me"])
        .expect(0);
    let asked = lab.run(&["convert", "single.safetensors", "--dry-run"]).expect(0);
    for part in
        ["Stable Diffusion 1.x, single file, predicts the noise", "BF16", "modelspec.author: me", "1,514 tokens"]
    {
        assert!(asked.stdout.contains(part), "no `{part}` in:\n{}", asked.stdout);
    }
    let asked = lab.run(&["convert", "single.safetensors", "never", "--dry-run", "--format", "json"]).expect(0);
    let report: serde_json::Value = serde_json::from_str(&asked.stdout).unwrap();
    assert_eq!(report["from"]["form"], "single-file");
    assert_eq!(report["from"]["prediction_type"], "epsilon");
    assert_eq!(report["to"]["form"], "diffusers");
    assert_eq!(report["to"]["precision"], "bf16");
    let unet = &report["from"]["parts"][2];
    assert_eq!(unet["parameters"], unet["stored"]["BF16"]);
    assert!(!lab.path("never").exists());
}

#[test]
fn wrong_requests_are_refused_and_nothing_is_touched() {
    let lab = Lab::new();
    lab.write("letter.txt", "dear");
    lab.write("home/letter.txt", "dear");
    lab.run(&["convert", "model"]).expect(2).says(&["<TO>"]);
    lab.run(&["convert", "absent", "x"]).expect(2).says(&["there is no model at absent", "hint: "]);
    lab.run(&["convert", "letter.txt", "x"]).expect(1).says(&["letter.txt", "not a safetensors file"]);
    lab.run(&["convert", "model", "x.ckpt"]).expect(2).says(&["x.ckpt would be a pickle", "hint: "]);
    lab.run(&["convert", "model", "letter.txt", "--to", "single-file"]).expect(2).says(&["exists already", "--force"]);
    lab.run(&["convert", "model", "home", "--force"]).expect(2).says(&["no model's folder"]);
    lab.run(&["convert", "model", "x", "--ema"]).expect(2).says(&["no EMA weights"]);
    lab.run(&["convert", "model", "x", "--variant", "fp16"]).expect(2).says(&["no variant `fp16`"]);
    assert_eq!((read(&lab, "letter.txt"), read(&lab, "home/letter.txt")), (b"dear".to_vec(), b"dear".to_vec()));
    assert!(!lab.path("x").exists() && !lab.path("x.ckpt").exists());
    lab.run(&["convert", "model", "letter.txt", "--to", "single-file", "--force"]).expect(0);
}

#[test]
fn a_pickle_that_would_run_a_program_is_refused_by_its_name() {
    let lab = Lab::new();
    let touch = "touch owned";
    // What pickle.dumps writes for an object whose __reduce__ gives (os.system, ("touch owned",)).
    let pickle = [
        b"\x80\x02cposix\nsystem\nq\x00X",
        &(touch.len() as u32).to_le_bytes()[..],
        touch.as_bytes(),
        b"q\x01\x85q\x02Rq\x03.",
    ];
    lab.write("model.ckpt", zip("archive/data.pkl", &pickle.concat()));
    for command in
        [["convert", "model.ckpt", "x"].as_slice(), &["train", "config.toml", "--set", "model.path=model.ckpt"]]
    {
        lab.run(command).expect(1).says(&["model.ckpt", "`posix.system`", "nothing in it was executed"]);
    }
    assert!(!lab.path("owned").exists() && !lab.path("x").exists() && lab.is_untouched());
}

/// A zip file with one entry, as it is.
fn zip(name: &str, content: &[u8]) -> Vec<u8> {
    let number = |number: usize| (number as u32).to_le_bytes();
    let sizes = [number(0), number(content.len()), number(content.len())].concat();
    let names = [(name.len() as u16).to_le_bytes(), [0; 2]].concat();
    let local = [b"PK\x03\x04\x14\0\0\0\0\0\0\0\0\0".as_slice(), &sizes, &names, name.as_bytes(), content].concat();
    let central =
        [b"PK\x01\x02\x14\0\x14\0\0\0\0\0\0\0\0\0".as_slice(), &sizes, &names, &[0; 14], name.as_bytes()].concat();
    let end =
        [b"PK\x05\x06\0\0\0\0\x01\0\x01\0".as_slice(), &number(central.len()), &number(local.len()), &[0; 2]].concat();
    [local, central, end].concat()
}

#[test]
fn a_single_file_is_trained_and_drawn_with_like_its_folder() {
    let lab = Lab::new();
    lab.run(&["convert", "model", "single.safetensors"]).expect(0);
    let folder = lab.train("folder", &["--workers", "1", "--max-steps", "1"]);
    let single = lab.train("single", &["--workers", "1", "--max-steps", "1", "--set", "model.path=single.safetensors"]);
    folder.assert_same_as(&single);
    let picture = |model: &str| {
        let out = format!("{model}.png");
        let args = ["--prompt", "a boat", "--steps", "2", "--width", "64", "--height", "64", "--out", &out];
        lab.run(&[&["sample", "--model", model], &args[..]].concat()).expect(0);
        image::open(lab.path(&out)).unwrap().into_rgb8().into_raw()
    };
    assert!(picture("model") == picture("single.safetensors"));
    // What training wrote is itself a model, in both forms.
    assert!(picture("runs/folder/final") == picture("runs/folder/final.safetensors"));
}

#[test]
fn what_a_file_does_not_tell_is_said_to_be_a_guess_wherever_it_is_used() {
    let lab = Lab::new();
    lab.run(&["convert", "model", "own.safetensors"]).expect(0);
    // As other tools write it: without the configurations.
    let bytes = read(&lab, "own.safetensors");
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    lab.write("bare.safetensors", safetensors::serialize(file.tensors(), None).unwrap());
    let draw = ["sample", "--model", "bare.safetensors", "--prompt", "x", "--steps", "1", "--out", "x.png"];
    let train = ["train", "config.toml", "--name", "bare", "--max-steps", "1", "--set", "model.path=bare.safetensors"];
    for command in [&["convert", "bare.safetensors", "x"][..], &draw, &train] {
        let said = lab.run(command).expect(0);
        said.says(&["a guess", "attention heads in the UNet", "attention heads in the text encoder", "--config DIR"]);
    }
    let known = lab.run(&["convert", "bare.safetensors", "y", "--config", "model"]).expect(0);
    assert_eq!(known.stderr, "");
    assert!(read(&lab, "y/unet/config.json") == read(&lab, "model/unet/config.json"));
    let known = lab.run(&[&draw[..], &["--config", "model"]].concat()).expect(0);
    assert!(!known.stderr.contains("guess"), "{}", known.stderr);
}
