//! Pictures made during the run, one PNG per prompt.

use std::path::{Path, PathBuf};

use ballast_common::config::{RunConfig, SamplerName};
use ballast_common::error_chain;
use ballast_model::{SampleRequest, SamplerKind, StableDiffusion, sampler};

use crate::trainer::text_settings;

use crate::save::write_file;

/// Draws the config's prompts with these indices and returns the files. Goes on after a failure; the first is returned too.
pub(crate) fn draw(
    model: &StableDiffusion,
    config: &RunConfig,
    next_step: u64,
    prompts: &[u32],
    folder: &Path,
) -> (Vec<PathBuf>, Option<String>) {
    let (mut paths, mut error) = (Vec::new(), None);
    for prompt in prompts {
        let path = folder.join(format!("step_{next_step:06}_{prompt:02}.png"));
        match draw_one(model, config, *prompt, &path) {
            Ok(()) => paths.push(path),
            Err(reason) => error = error.or(Some(format!("prompt {prompt}: {reason}"))),
        }
    }
    (paths, error)
}

fn draw_one(model: &StableDiffusion, config: &RunConfig, index: u32, path: &Path) -> Result<(), String> {
    let request = request(config, index).ok_or("the config has no such prompt")?;
    // Training goes on without the picture, whatever is wrong with it.
    let drawing = std::panic::AssertUnwindSafe(|| sampler::sample(model, &request));
    let pixels = std::panic::catch_unwind(drawing)
        .map_err(|_| "the sampler panicked".to_owned())?
        .map_err(|error| error_chain(&error))?;
    let png = pixels.to_png(&request.parameters()).map_err(|error| error_chain(&error))?;
    let folder = path.parent().expect("a file in a folder");
    std::fs::create_dir_all(folder).map_err(|error| format!("cannot create {}: {error}", folder.display()))?;
    write_file(path, &png).map_err(|error| error_chain(&error))
}

/// The drawing of a prompt. Each prompt has a seed of its own, the same at every step, so that pictures can be compared.
fn request(config: &RunConfig, index: u32) -> Option<SampleRequest> {
    let (width, height) = config.sample_size();
    let request = SampleRequest {
        prompt: config.sample.prompts.get(index as usize)?.clone(),
        negative_prompt: config.sample.negative_prompt.clone(),
        seed: config.sample.seed.wrapping_add(u64::from(index)),
        width: width as usize,
        height: height as usize,
        steps: config.sample.steps as usize,
        guidance_scale: config.sample.guidance_scale,
        sampler: sampler_kind(config.sample.sampler),
        text: text_settings(config),
        ..SampleRequest::default()
    }
    .with_usual_sigmas();
    Some(request)
}

fn sampler_kind(name: SamplerName) -> SamplerKind {
    match name {
        SamplerName::Ddim => SamplerKind::Ddim,
        SamplerName::Euler => SamplerKind::Euler,
        SamplerName::EulerAncestral => SamplerKind::EulerAncestral,
        SamplerName::DpmPlusPlus2M => SamplerKind::DpmPlusPlus2M,
    }
}

#[cfg(test)]
mod tests {
    use ballast_model::{Preset, init_model};

    use super::*;

    #[test]
    fn pictures_say_how_they_were_made_and_failures_do_not_stop_the_others() {
        let mut config = RunConfig::default();
        config.sample.prompts = vec!["a blue bird, größer".to_owned()];
        config.sample.steps = 2;
        (config.sample.width, config.sample.height) = (Some(64), Some(64));
        let folder = tempfile::tempdir().unwrap();
        let samples = folder.path().join("samples");
        let (paths, error) = draw(&init_model(Preset::Tiny, 1), &config, 100, &[7, 0], &samples);
        assert_eq!(paths, [samples.join("step_000100_00.png")]);
        assert!(error.unwrap().starts_with("prompt 7"));
        let file = std::io::BufReader::new(std::fs::File::open(&paths[0]).unwrap());
        let reader = png::Decoder::new(file).read_info().unwrap();
        let text = &reader.info().uncompressed_latin1_text[0].text;
        assert!(text.starts_with("a blue bird, größer\n") && text.contains("Seed: 1"), "{text}");
        assert_eq!((reader.info().width, reader.info().height), (64, 64));
    }
}
