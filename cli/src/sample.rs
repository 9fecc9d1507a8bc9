//! `ballast sample`: pictures from a model.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use ballast_common::telemetry::{self, Options, Service};
use ballast_model::sampler::SampleError;
use ballast_model::{RgbPixels, SampleRequest, SamplerKind, StableDiffusion, TextSettings};
use clap::builder::PossibleValuesParser;

use crate::failure::Failure;
use crate::model_args::ModelArgs;
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
    #[arg(long, visible_alias = "negative-prompt", value_name = "TEXT", default_value = "")]
    negative: String,
    /// The seed of the first picture; each further one of a prompt has the next number.
    #[arg(long, default_value_t = 1, allow_negative_numbers = true)]
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
    /// How the steps go from noise to a picture. euler-a adds new noise in each; dpmpp-2m needs the fewest.
    #[arg(long, default_value = "ddim", value_parser = samplers())]
    sampler: SamplerKind,
    /// The noise levels of euler and dpmpp-2m: Karras' (arXiv:2206.00364), or those of the model's own timesteps
    /// [default: karras with dpmpp-2m, else what the model's scheduler_config.json says].
    #[arg(long, value_name = "SPACING", value_parser = ["karras", "timesteps"])]
    sigmas: Option<String>,
    /// How strongly the prompt is followed; 1 is without guidance.
    #[arg(long, default_value_t = 5.0, allow_negative_numbers = true)]
    guidance: f64,
    /// How much of the contrast that guidance adds is taken back, 0 to 1 (arXiv:2305.08891); 0.7 for models with zero
    /// terminal SNR.
    #[arg(long, value_name = "SHARE", default_value_t = 0.0, allow_negative_numbers = true)]
    guidance_rescale: f64,
    /// Which layer of the text encoder is used, from the end: 1 is the last, 2 the one before [default: the one that ballast
    /// trained the model with, else 1].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100))]
    clip_skip: Option<u32>,
    /// Encodes prompts of more than 75 tokens in chunks of 75, instead of cutting them off [default: as ballast trained the
    /// model, else false].
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    long_prompts: Option<bool>,
    /// Puts all pictures on one sheet: a row per prompt, a column per picture; with several models a row per model.
    #[arg(long)]
    sheet: bool,
    /// Pictures in a row of the sheet.
    #[arg(long, value_name = "N", requires = "sheet", value_parser = clap::value_parser!(u32).range(1..=1000))]
    columns: Option<u32>,
    /// A PNG file for one picture or a sheet; else a folder.
    #[arg(long, value_name = "PATH")]
    out: PathBuf,
    #[command(flatten)]
    reading: ModelArgs,
}

const AFTER_HELP: &str = "\
Each PNG says how it was made, in a text chunk that many programs show.

Examples:
  ballast sample --model runs/quickstart/final --prompt 'a red boat on the sea' --out boat.png
  ballast sample --model runs/quickstart/final --prompt 'a cat' --sampler dpmpp-2m --steps 20 --count 8 --out cats/
  ballast sample --sheet --model examples/model --model runs/quickstart/final --prompt 'a cat' --prompt 'a dog' --out before-after.png
      the same prompts and seeds before and after training";

fn samplers() -> impl clap::builder::TypedValueParser<Value = SamplerKind> {
    use clap::builder::TypedValueParser as _;
    PossibleValuesParser::new(SamplerKind::ALL.map(SamplerKind::name))
        .map(|name| name.parse().expect("one of the names just listed"))
}

/// Runs the command.
pub(crate) fn run(args: Args, output: OutputArgs) -> Result<ExitCode, Failure> {
    let _telemetry = telemetry::init(Service::Cli, Options::new(output.verbosity()));
    args.check()?;
    let one_file = args.is_one_file();
    let mut sheet = Sheet::default();
    let mut sheet_parameters = None;
    let mut paths = Vec::new();
    for path in &args.model {
        let model = args.open(path)?;
        let text = args.text_settings(model.text_settings());
        let requests = args.requests(native_side(path, &model)?, text);
        args.warn_of_long_prompts(&model, text);
        for (index, request) in requests.iter().enumerate() {
            let picture = draw(&model, request)?;
            if args.sheet {
                sheet.add(picture);
                // As other programs do with their grids: those of the first picture.
                sheet_parameters.get_or_insert_with(|| request.parameters());
                if (index + 1).is_multiple_of(args.columns()) {
                    sheet.end_row();
                }
                continue;
            }
            let path = if one_file { args.out.clone() } else { args.out.join(file_name(index, request)) };
            save(&picture, &request.parameters(), &path)?;
            if output.verbosity() >= 0 {
                say(&format!("{}/{} {}", index + 1, requests.len(), shown(&path)));
            }
            paths.push(path);
        }
        sheet.end_row();
    }
    if let Some(parameters) = sheet_parameters {
        save(&sheet.compose(), &parameters, &args.out)?;
        paths.push(args.out);
    }
    let paths: Vec<String> = paths.iter().map(|path| path.display().to_string()).collect();
    print(&paths.join("\n"))?;
    Ok(ExitCode::SUCCESS)
}

impl Args {
    /// Refuses what cannot be drawn before a model is loaded.
    fn check(&self) -> Result<(), Failure> {
        self.model.iter().try_for_each(|path| model_path::open(path, &self.reading.options()).map(drop))?;
        if self.model.len() > 1 && !self.sheet {
            return Err(Failure::usage("several models are drawn only onto a sheet").hint("add --sheet"));
        }
        if self.is_one_file() && !self.has_png_name() {
            return Err(Failure::usage(format_args!("{} is no PNG file", self.out.display())).hint("end it in .png"));
        }
        if !self.is_one_file() && (self.out.is_file() || self.has_png_name()) {
            let count = self.prompt.len() as u64 * u64::from(self.count);
            let what = format_args!("{count} pictures need a folder, and {} is a file's name", self.out.display());
            return Err(Failure::usage(what).hint("name a folder, or add --sheet for one picture of them all"));
        }
        for (name, value, most) in
            [("guidance", self.guidance, 100.0), ("guidance-rescale", self.guidance_rescale, 1.0)]
        {
            if !(0.0..=most).contains(&value) {
                return Err(Failure::usage(format_args!("--{name} is {value}, not a number from 0 to {most}")));
            }
        }
        if self.seed.checked_add(u64::from(self.count) - 1).is_none() {
            return Err(Failure::usage(format_args!("--seed {} is too large for {} pictures", self.seed, self.count)));
        }
        Ok(())
    }

    /// Loads a model, and says what was assumed about it.
    fn open(&self, path: &Path) -> Result<StableDiffusion, Failure> {
        let checkpoint = model_path::open(path, &self.reading.options())?;
        checkpoint.notes().iter().for_each(|note| say(&format!("note: {note}")));
        let loaded = checkpoint.load(&ballast_model::cpu_device());
        Ok(loaded.with_context(|| format!("cannot load the model {}", path.display()))?)
    }

    fn has_png_name(&self) -> bool {
        self.out.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("png"))
    }

    fn is_one_file(&self) -> bool {
        self.sheet || self.prompt.len() as u64 * u64::from(self.count) == 1
    }

    /// Pictures in a row of the sheet.
    fn columns(&self) -> usize {
        let row = if self.model.len() > 1 { self.prompt.len() * self.count as usize } else { self.count as usize };
        self.columns.map_or(row, |columns| columns as usize)
    }

    fn requests(&self, native_side: u32, text: TextSettings) -> Vec<SampleRequest> {
        let request = |prompt: &String, number: u32| {
            let request = SampleRequest {
                prompt: prompt.clone(),
                negative_prompt: self.negative.clone(),
                seed: self.seed + u64::from(number),
                width: self.width.unwrap_or(native_side) as usize,
                height: self.height.unwrap_or(native_side) as usize,
                steps: self.steps as usize,
                sampler: self.sampler,
                karras_sigmas: None,
                guidance_scale: self.guidance,
                guidance_rescale: self.guidance_rescale,
                text,
            };
            match &self.sigmas {
                None => request.with_usual_sigmas(),
                Some(spacing) => SampleRequest { karras_sigmas: Some(spacing == "karras"), ..request },
            }
        };
        self.prompt.iter().flat_map(|prompt| (0..self.count).map(move |number| request(prompt, number))).collect()
    }

    /// The model's own settings, or what the command line says instead.
    fn text_settings(&self, of_model: TextSettings) -> TextSettings {
        TextSettings {
            clip_skip: self.clip_skip.map_or(of_model.clip_skip, |skip| skip as usize),
            long_prompts: self.long_prompts.unwrap_or(of_model.long_prompts),
        }
    }

    /// Says once for each prompt that its end is not used.
    fn warn_of_long_prompts(&self, model: &StableDiffusion, settings: TextSettings) {
        for prompt in self.prompt.iter().chain([&self.negative]).collect::<BTreeSet<_>>() {
            let cut_off = model.tokenizer.cut_off(prompt, settings);
            if cut_off > 0 {
                let remedy = if settings.long_prompts { "" } else { " (--long-prompts uses them)" };
                say(&format!("warning: the last {cut_off} tokens of this prompt are not used{remedy}: {prompt}"));
            }
        }
    }
}

/// Returns the side in pixels that the model was made for.
fn native_side(path: &Path, model: &StableDiffusion) -> anyhow::Result<u32> {
    let side = model.native_side();
    u32::try_from(side).with_context(|| format!("{} says it is for pictures of {side} pixels", path.display()))
}

fn draw(model: &StableDiffusion, request: &SampleRequest) -> Result<RgbPixels, Failure> {
    ballast_model::sampler::sample(model, request).map_err(|error| {
        let is_usage = !matches!(error, SampleError::NotFinite { .. });
        let failure = Failure::from(anyhow::Error::new(error));
        if is_usage { failure.blaming_usage() } else { failure }
    })
}

fn save(picture: &RgbPixels, parameters: &str, path: &Path) -> anyhow::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    if let Some(folder) = folder {
        std::fs::create_dir_all(folder).with_context(|| format!("cannot make the folder {}", folder.display()))?;
    }
    let writing = || format!("cannot write {}", path.display());
    let bytes = picture.to_png(parameters).with_context(writing)?;
    // Under its name only when it is whole.
    let partial = path.with_extension(format!("png.{}.part", std::process::id()));
    let written = std::fs::write(&partial, bytes).and_then(|()| std::fs::rename(&partial, path));
    written.with_context(writing).inspect_err(|_| _ = std::fs::remove_file(&partial))
}

/// `00_seed1_a_red_boat.png`
fn file_name(index: usize, request: &SampleRequest) -> String {
    let word = |c: char| if c.is_alphanumeric() { c } else { '_' };
    let prompt: String = request.prompt.chars().map(word).take(40).collect();
    format!("{index:02}_seed{}_{prompt}.png", request.seed)
}
