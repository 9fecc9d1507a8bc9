//! Runs over pictures that are made for them, which nobody trains: for what coordinates them.

use std::path::Path;

use ballast_common::config::RunConfig;
use ballast_common::dataset::Dataset;
use ballast_coordinator::PreparedRun;

/// Makes a run in `folder/run` over small pictures in `folder/data`; `settings` are added to the config.
///
/// # Errors
/// When the folder cannot be written or a setting is no good.
pub fn made_up_run(folder: &Path, images: u64, settings: &[(&str, String)]) -> anyhow::Result<PreparedRun> {
    let (data, model) = (folder.join("data"), folder.join("model"));
    std::fs::create_dir(&data)?;
    std::fs::create_dir(&model)?;
    std::fs::write(model.join("model_index.json"), "{}")?;
    let picture = folder.join("picture.png");
    image::RgbImage::new(64, 64).save(&picture)?;
    for number in 0..images {
        std::fs::copy(&picture, data.join(format!("{number:06}.png")))?;
    }
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let all = [
        ("data.root", text(&data)),
        ("data.resolution", "64".to_owned()),
        ("data.scan_cache", "false".to_owned()),
        ("model.path", text(&model)),
        ("step.micro_batch_size", "1".to_owned()),
    ];
    let all: Vec<_> = all.iter().chain(settings).map(|(key, value)| ((*key).to_owned(), value.clone())).collect();
    let config = RunConfig::load(None, &all, [])?;
    let dataset = Dataset::scan(&config.data)?;
    Ok(PreparedRun::create(config, dataset, folder.join("run"))?)
}
