//! `ballast sample`: pictures from a model.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use ballast_common::telemetry::{self, Options, Service};
use ballast_model::{RgbPixels, SampleRequest, StableDiffusion};
use image::RgbImage;

use crate::failure::Failure;
use crate::output::{print, say};
use crate::sheet::Sheet;
use crate::summary::shown;
use crate::{OutputArgs, model_path};

/// Draws pictures with a model.
#[derive(clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Args {
    /// The model: a folder in the diffusers layout, e.g. RUN/final, or a single file. With --sheet it may be given many times.
    #[arg(long, value_name = "PATH", required = true)]
    model: Vec<PathBuf>,
    /// What the picture should show. May be given many times.
    #[arg(long, value_name = "TEXT", required = true)]
    prompt: Vec<String>,
    /// What it should not show.
    #[arg(long, value_name = "TEXT", default_value = "")]
    negative: String,
    /// The seed of the first picture; each further one of a prompt has the next number.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Pictures per prompt.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    count: u32,
    /// Width in pixels, a multiple of 8 [default: the model's own].
    #[arg(long, value_parser = clap::value_parser!(u32).range(8..=8192))]
    width: Option<u32>,
    /// Height in pixels, a multiple of 8 [default: the model's own].
    #[arg(long, value_parser = clap::value_parser!(u32).range(8..=8192))]
    height: Option<u32>,
    /// Denoising steps.
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=1000))]
    steps: u32,
    /// How strongly the prompt is followed; 1 is without guidance.
    #[arg(long, default_value_t = 5.0)]
    guidance: f64,
    /// Puts all pictures on one sheet: a row per model, a column per picture.
    #[arg(long)]
    sheet: bool,
    /// A PNG file for one picture or a sheet; else a folder.
    #[arg(long, value_name = "PATH")]
    out: PathBuf,
}

const AFTER_HELP: &str = "\
Examples:
  ballast sample --model runs/quickstart/final --prompt 'a red boat on the sea' --out boat.png
  ballast sample --model runs/quickstart/final --prompt 'a cat' --count 8 --out cats/
  ballast sample --sheet --model examples/model --model runs/quickstart/final --prompt 'a cat' --prompt 'a dog' --out before-after.png
      the same prompts and seeds before and after training";

/// Runs the command.
pub(crate) fn run(args: Args, output: OutputArgs) -> Result<ExitCode, Failure> {
    let _telemetry = telemetry::init(Service::Cli, Options::new(output.verbosity()));
    args.model.iter().try_for_each(|path| model_path::check(path))?;
    let one_file = args.sheet || args.prompt.len() as u32 * args.count == 1;
    if args.model.len() > 1 && !args.sheet {
        return Err(Failure::usage("several models are drawn only onto a sheet").hint("add --sheet"));
    }
    if one_file && !args.out.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("png")) {
        return Err(Failure::usage(format_args!("{} is no PNG file", args.out.display())).hint("end it in .png"));
    }

    let mut sheet = Sheet::default();
    let mut paths = Vec::new();
    for path in &args.model {
        let model = open(path)?;
        let requests = args.requests(native_side(path, &model)?);
        for (index, request) in requests.iter().enumerate() {
            let picture = draw(&model, request)?;
            if args.sheet {
                sheet.add(picture);
                continue;
            }
            let path = if one_file { args.out.clone() } else { args.out.join(file_name(index, request)) };
            save(&picture, &path)?;
            if output.verbosity() >= 0 {
                say(&format!("{}/{} {}", index + 1, requests.len(), shown(&path)));
            }
            paths.push(path);
        }
        sheet.end_row();
    }
    if args.sheet {
        save(&sheet.compose(), &args.out)?;
        paths.push(args.out);
    }
    let paths: Vec<String> = paths.iter().map(|path| path.display().to_string()).collect();
    print(&paths.join("\n"))?;
    Ok(ExitCode::SUCCESS)
}

impl Args {
    fn requests(&self, native_side: u32) -> Vec<SampleRequest> {
        let request = |prompt: &String, number: u32| SampleRequest {
            prompt: prompt.clone(),
            negative_prompt: self.negative.clone(),
            seed: self.seed + u64::from(number),
            width: self.width.unwrap_or(native_side) as usize,
            height: self.height.unwrap_or(native_side) as usize,
            steps: self.steps as usize,
            guidance_scale: self.guidance,
        };
        self.prompt.iter().flat_map(|prompt| (0..self.count).map(move |number| request(prompt, number))).collect()
    }
}

fn open(path: &Path) -> anyhow::Result<StableDiffusion> {
    StableDiffusion::load(path, &ballast_model::cpu_device())
        .with_context(|| format!("cannot load the model {}", path.display()))
}

/// Returns the side in pixels that the model was made for.
fn native_side(path: &Path, model: &StableDiffusion) -> anyhow::Result<u32> {
    let side = model.native_side();
    u32::try_from(side).with_context(|| format!("{} says it is for pictures of {side} pixels", path.display()))
}

fn draw(model: &StableDiffusion, request: &SampleRequest) -> Result<RgbImage, Failure> {
    let pixels = ballast_model::sampler::sample(model, request);
    let RgbPixels { width, height, data } =
        pixels.map_err(|error| Failure::from(anyhow::Error::new(error)).blaming_usage())?;
    Ok(RgbImage::from_raw(width as u32, height as u32, data).expect("three bytes per pixel"))
}

fn save(picture: &RgbImage, path: &Path) -> anyhow::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    if let Some(folder) = folder {
        std::fs::create_dir_all(folder).with_context(|| format!("cannot make the folder {}", folder.display()))?;
    }
    picture.save_with_format(path, image::ImageFormat::Png).with_context(|| format!("cannot write {}", path.display()))
}

/// `00_seed1_a_red_boat.png`
fn file_name(index: usize, request: &SampleRequest) -> String {
    let word = |c: char| if c.is_alphanumeric() { c } else { '_' };
    let prompt: String = request.prompt.chars().map(word).take(40).collect();
    format!("{index:02}_seed{}_{prompt}.png", request.seed)
}
