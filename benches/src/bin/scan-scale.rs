//! How long a data root of many small files takes to read: without a cache, writing one, from it, and after a hundredth of
//! the files has changed. Each measurement is a process of its own, so that its memory is its own too.

use std::fs::{self, File};
use std::io::{Cursor, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, ensure};
use ballast_common::config::DataConfig;
use ballast_common::dataset::{Dataset, ScanCache, ScanOptions, ScanProgress};
use clap::Parser;
use image::{ImageFormat, RgbImage};

const IMAGES_PER_FOLDER: u64 = 200;

/// Measures reading a data root of N small JPEG and PNG files, a third of them with a caption beside it.
#[derive(Parser)]
struct Args {
    /// How many images.
    #[arg(long, value_name = "N", default_value_t = 100_000)]
    images: u64,
    /// How often each is measured; the table shows the median.
    #[arg(long, value_name = "N", default_value_t = 1)]
    repeat: usize,
    /// Where to make the data root [default: the system's temporary folder]. It is deleted afterwards.
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Measures one scan of this folder, and prints seconds, images, images from the cache and peak memory in KiB.
    #[arg(long, hide = true, value_name = "DIR")]
    measure: Option<PathBuf>,
    #[arg(long, hide = true, value_name = "DIR")]
    cache: Option<PathBuf>,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    if let Some(root) = &args.measure {
        return measure(root, args.cache.as_deref());
    }
    let folder = match &args.dir {
        Some(dir) => tempfile::tempdir_in(dir)?,
        None => tempfile::tempdir()?,
    };
    let (root, cache) = (folder.path().join("root"), folder.path().join("cache"));
    let start = Instant::now();
    let captions = make(&root, args.images)?;
    println!("{} images, {captions} captions, made in {:.0} s", args.images, start.elapsed().as_secs_f64());
    // Files changed within the last two seconds are not remembered.
    std::thread::sleep(Duration::from_secs(3));
    println!("\n| scan | seconds | images/s | from the cache | peak memory |\n|---|---|---|---|---|");
    let run = |what: &str, cache: Option<&Path>, before: &dyn Fn() -> anyhow::Result<()>| {
        let mut all = Vec::new();
        for _ in 0..args.repeat.max(1) {
            before()?;
            all.push(in_process(&root, cache)?);
        }
        all.sort_by(|a, b| a.seconds.total_cmp(&b.seconds));
        let Measured { seconds, images, from_cache, peak_kib } = all[all.len() / 2];
        ensure!(images == args.images, "{images} images found");
        let speed = images as f64 / seconds;
        println!("| {what} | {seconds:.2} | {speed:.0} | {from_cache} | {} MiB |", peak_kib / 1024);
        Ok(())
    };
    let clear = || match fs::remove_dir_all(&cache) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    };
    run("first, as the files were left by writing them", None, &|| Ok(()))?;
    run("writing the cache", Some(&cache), &clear)?;
    run("from the cache", Some(&cache), &|| Ok(()))?;
    run("after 1 % of the files changed", Some(&cache), &|| touch(&root, args.images))?;
    Ok(())
}

#[derive(Clone, Copy)]
struct Measured {
    seconds: f64,
    images: u64,
    from_cache: u64,
    peak_kib: u64,
}

fn in_process(root: &Path, cache: Option<&Path>) -> anyhow::Result<Measured> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("--measure").arg(root);
    if let Some(cache) = cache {
        command.arg("--cache").arg(cache);
    }
    let output = command.output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout)?;
    let numbers: Vec<f64> = text.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
    let [seconds, images, from_cache, peak_kib] = numbers[..] else { anyhow::bail!("four numbers, not {text:?}") };
    Ok(Measured { seconds, images: images as u64, from_cache: from_cache as u64, peak_kib: peak_kib as u64 })
}

fn measure(root: &Path, cache: Option<&Path>) -> anyhow::Result<()> {
    let config = DataConfig { root: Some(root.into()), ..DataConfig::default() };
    let known = Mutex::new(0);
    let progress = |at| {
        if let ScanProgress::Done { from_cache, .. } = at {
            *known.lock().expect("nothing panics while it is held") = from_cache;
        }
    };
    let options = ScanOptions { cache: cache.map(ScanCache::at), progress: &progress, ..ScanOptions::new(&config) };
    let start = Instant::now();
    let dataset = Dataset::scan_with(&config, &options)?;
    let seconds = start.elapsed().as_secs_f64();
    let from_cache = *known.lock().expect("nothing panics while it is held");
    println!("{seconds} {} {from_cache} {}", dataset.samples.len(), peak_kib()?);
    Ok(())
}

/// The most memory that this process has held.
fn peak_kib() -> anyhow::Result<u64> {
    let status = fs::read_to_string("/proc/self/status").context("peak memory is known on Linux only")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM line")?;
    Ok(line.trim().trim_end_matches("kB").trim().parse()?)
}

/// Makes the data root: JPEG and PNG in turn, of sixteen sizes, no two files alike; every third has a caption.
fn make(root: &Path, images: u64) -> anyhow::Result<u64> {
    let pictures: Vec<(Vec<u8>, &str)> = (0..16).map(picture).collect::<Result<_, _>>()?;
    let mut captions = 0;
    for number in 0..images {
        let folder = root.join(format!("{:03}/{:05}", number / IMAGES_PER_FOLDER / 100, number / IMAGES_PER_FOLDER));
        if number % IMAGES_PER_FOLDER == 0 {
            fs::create_dir_all(&folder)?;
            fs::write(folder.join("multiply.txt"), "0.5")?;
        }
        let (picture, extension) = &pictures[number as usize % 16];
        let mut file = File::create(folder.join(format!("{number:07}.{extension}")))?;
        file.write_all(&[picture.as_slice(), &number.to_le_bytes()].concat())?;
        if number % 3 == 0 {
            fs::write(folder.join(format!("{number:07}.txt")), format!("a small picture, number {number}"))?;
            captions += 1;
        }
    }
    Ok(captions)
}

fn picture(number: u32) -> anyhow::Result<(Vec<u8>, &'static str)> {
    let image = RgbImage::from_fn(32 + 8 * number, 96, |x, y| image::Rgb([x as u8, y as u8, (x * y) as u8]));
    let (format, extension) =
        if number.is_multiple_of(2) { (ImageFormat::Jpeg, "jpg") } else { (ImageFormat::Png, "png") };
    let mut bytes = Cursor::new(Vec::new());
    image.write_to(&mut bytes, format)?;
    Ok((bytes.into_inner(), extension))
}

/// Changes the time of every hundredth file.
fn touch(root: &Path, images: u64) -> anyhow::Result<()> {
    for number in (0..images).step_by(100) {
        let extension = if number % 16 % 2 == 0 { "jpg" } else { "png" };
        let (outer, inner) = (number / IMAGES_PER_FOLDER / 100, number / IMAGES_PER_FOLDER);
        let path = root.join(format!("{outer:03}/{inner:05}/{number:07}.{extension}"));
        File::options().write(true).open(path)?.set_modified(SystemTime::now())?;
    }
    Ok(())
}
