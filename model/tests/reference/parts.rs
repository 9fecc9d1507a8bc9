//! Tokenizer, text encoder, autoencoder, UNet.

use crate::case::{OpenCase, list};
use crate::report::{FORWARD, Report};
use ballast_model::cpu_device;
use burn::tensor::{Tensor, TensorData};

pub(crate) fn tokens(case: &OpenCase, report: &mut Report) {
    let json = &case.numbers.json;
    let prompts: Vec<String> = list(&json["prompts"]);
    let full: Vec<Vec<u32>> = list(&json["tok.full_ids0"]);
    let ids = case.token_ids(&(0..prompts.len()).collect::<Vec<_>>());
    let tokenizer = &case.model.tokenizer;
    report.note_equal("the padding token", json["tok.pad0"] == tokenizer.pad_id());
    for ((prompt, ids), full) in prompts.iter().zip(ids).zip(full) {
        report.note_equal(&format!("the token ids of {prompt:?}"), tokenizer.encode(prompt) == ids);
        report.note_equal(&format!("the token count of {prompt:?}"), tokenizer.token_count(prompt) + 2 == full.len());
    }
}

pub(crate) fn text(case: &OpenCase, report: &mut Report) {
    let numbers = &case.numbers;
    let count = list::<String>(&numbers.json["prompts"]).len();
    let ids = case.token_ids(&(0..count).collect::<Vec<_>>());
    let device = cpu_device();
    let encoder = &case.model.text_encoder;
    let last = encoder.encode(&ids, &device);
    let mut states = vec![("te.0.last", last.clone()), ("te.context", last)];
    // An encoder of one layer has none to skip.
    if let Ok(skipping) = encoder.clone().with_clip_skip(2) {
        let data = TensorData::new(ids.concat(), [count, ids[0].len()]);
        states.push(("te.0.penult", skipping.hidden_state(Tensor::from_data(data, &device))));
        states.push(("te.0.penult_ln", skipping.encode(&ids, &device)));
    }
    for (name, states) in states {
        report.note("text states", FORWARD, name, numbers.error(name, states));
    }
}

pub(crate) fn autoencoder(case: &OpenCase, report: &mut Report) {
    let (numbers, vae) = (&case.numbers, &case.model.vae);
    for n in (0..).take_while(|n| numbers.has(&format!("in.vae.{n}.image"))) {
        let input = |what: &str| numbers.tensor::<4>(&format!("in.vae.{n}.{what}"));
        let posterior = vae.encode(input("image"));
        for (what, actual) in [
            ("mean", posterior.mean.clone()),
            ("logvar", posterior.logvar.clone()),
            ("latents", posterior.sample(input("eps"))),
            ("decode_z", vae.decode(input("z") * vae.scaling_factor())),
        ] {
            let name = format!("vae.{n}.{what}");
            let error = numbers.error(&name, actual);
            report.note("autoencoder", FORWARD, &name, error);
        }
    }
}

pub(crate) fn unet(case: &OpenCase, report: &mut Report) {
    let (numbers, unet) = (&case.numbers, &case.model.unet);
    let timesteps: Vec<f32> = list(&case.parity["timesteps"]);
    let ids = case.token_ids(&list::<usize>(&numbers.json["unet.prompt_index"]));
    let text = case.model.text_encoder.encode(&ids, &cpu_device());
    let mut sizes: Vec<[usize; 2]> = list(&case.parity["latent_hw"]);
    sizes.push(serde_json::from_value(case.parity["odd_hw"].clone()).expect("height and width"));
    let latents = |[height, width]: [usize; 2]| numbers.tensor::<4>(&format!("in.unet.{height}x{width}.x"));
    for size @ [height, width] in sizes.clone() {
        let mut runs: Vec<(String, [f32; 2])> = timesteps.iter().map(|t| (format!("t{t}"), [*t; 2])).collect();
        runs.push(("tvec".to_owned(), [timesteps[1], timesteps[3]]));
        for (label, timesteps) in runs {
            let name = format!("unet.{height}x{width}.{label}");
            let out = unet.forward(latents(size), &timesteps, text.clone());
            report.note("UNet", FORWARD, &name, numbers.error(&name, out));
        }
    }
    let long_text = numbers.tensor::<3>("in.unet.ctx154");
    let out = unet.forward(latents(sizes[0]), &[timesteps[2]; 2], long_text);
    report.note("UNet", FORWARD, "unet.ctx154", numbers.error("unet.ctx154", out));
}
