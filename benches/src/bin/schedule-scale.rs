//! The schedule at scale: how long it takes, how much memory, and how soon any step of it can be had.
//!
//! `schedule-scale --images N [--case NAME] [--micro-batch-size B] [--slots S] [--epoch E]` makes up `N` images without a disk,
//! computes the schedule of an epoch and prints what was measured. `--case all` measures every case in a process of its
//! own, so that each has its own peak of memory. From 100 million images on the goals hold, and the exit code is 1 when one
//! of them is missed.

use std::fmt;
use std::hint::black_box;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use ballast_common::config::Remainder;
use ballast_common::dataset::{Decimal, buckets};
use ballast_common::schedule::{EpochSchedule, Roster, RosterBuilder, RosterSample, ScheduleOptions};

const USAGE: &str = "schedule-scale --images N [--case NAME] [--micro-batch-size B] [--slots S] [--epoch E]";

/// From as many images on the goals hold.
const GOAL_IMAGES: u64 = 100_000_000;
/// The roster and the schedule together.
const GOAL_TIME: Duration = Duration::from_secs(10);
/// Any step.
const GOAL_STEP: Duration = Duration::from_millis(100);
/// Peak of the whole process, in bytes.
const GOAL_MEMORY: u64 = 1_000_000_000;

/// A made-up kind of dataset.
struct Case {
    name: &'static str,
    about: &'static str,
    folders: u64,
    /// Multipliers of the folders, in turn.
    multiply: &'static [&'static str],
    /// Occurrences for each image, about: as many images are left out as it takes to have `--images` occurrences or images.
    per_image: f64,
    micro_batch_size: u32,
    /// How many batch ids there are, for images of every second folder.
    batch_ids: u64,
}

const CASES: [Case; 6] = [
    Case { name: "main", about: "1000 folders, multipliers from 0.05 to 2.5", ..BASE },
    Case { name: "plain", about: "1000 folders, multiplier 1", multiply: &["1"], ..BASE },
    Case { name: "onefolder-half", about: "one folder, multiplier 0.5", folders: 1, multiply: &["0.5"], ..BASE },
    Case { name: "copies", about: "1000 folders, multiplier 2.5", multiply: &["2.5"], per_image: 2.5, ..BASE },
    Case { name: "batchids", about: "as main, half the folders with 40 batch ids", batch_ids: 40, ..BASE },
    Case { name: "mbs1", about: "as main, micro-batches of 1", micro_batch_size: 1, ..BASE },
];

const BASE: Case = Case {
    name: "",
    about: "",
    folders: 1000,
    multiply: &["0.05", "0.5", "1", "1.3", "2", "0.5", "2.5", "0.25"],
    per_image: 1.0,
    micro_batch_size: 4,
    batch_ids: 0,
};

struct Arguments {
    images: u64,
    case: String,
    micro_batch_size: Option<u32>,
    slots: u32,
    epoch: u64,
}

fn main() -> ExitCode {
    let arguments = match parse(std::env::args().skip(1)) {
        Ok(arguments) => arguments,
        Err(problem) => {
            eprintln!("{problem}\n{USAGE}\ncases: all");
            CASES.iter().for_each(|case| eprintln!("       {}: {}", case.name, case.about));
            return ExitCode::from(2);
        }
    };
    let is_good = match CASES.iter().find(|case| case.name == arguments.case) {
        Some(case) => measure(case, &arguments),
        None => CASES.iter().map(measure_apart).fold(true, |all, is_good| all & is_good),
    };
    if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Arguments, String> {
    let (case, micro_batch_size, slots, epoch) = ("main".to_owned(), None, 16, 1);
    let mut parsed = Arguments { images: 0, case, micro_batch_size, slots, epoch };
    while let Some(name) = arguments.next() {
        let value = arguments.next().ok_or(format!("{name} has no value"))?;
        let number = || value.parse::<u64>().map_err(|_| format!("{name} {value}: not a whole number"));
        let small = || number().map(|number| number.clamp(1, 65_536) as u32);
        match name.as_str() {
            "--images" => parsed.images = number()?,
            "--case" => parsed.case = value,
            "--micro-batch-size" => parsed.micro_batch_size = Some(small()?),
            "--slots" => parsed.slots = small()?,
            "--epoch" => parsed.epoch = number()?,
            _ => return Err(format!("{name} is unknown")),
        }
    }
    if !(1..1 << 31).contains(&parsed.images) {
        return Err("--images is a number from 1 to 2^31".to_owned());
    }
    if parsed.case != "all" && CASES.iter().all(|case| case.name != parsed.case) {
        return Err(format!("--case {} is unknown", parsed.case));
    }
    Ok(parsed)
}

/// Measures a case in a process of its own, with the other arguments as they were given.
fn measure_apart(case: &Case) -> bool {
    let arguments =
        std::env::args().skip(1).map(|argument| if argument == "all" { case.name.to_owned() } else { argument });
    let program = std::env::current_exe().expect("the program knows its own path");
    Command::new(program).args(arguments).status().expect("the program can be started again").success()
}

fn measure(case: &Case, arguments: &Arguments) -> bool {
    let micro_batch_size = arguments.micro_batch_size.unwrap_or(case.micro_batch_size);
    let options = ScheduleOptions { seed: 555, micro_batch_size, slots: arguments.slots, remainder: Remainder::Deck };
    let images = (arguments.images as f64 / case.per_image) as u64;
    let (roster, roster_time) = timed(|| make_up(case, images));
    let (schedule, compute_time) = timed(|| EpochSchedule::of(&roster, &options, arguments.epoch));
    let (step_time, _) = timed(|| slowest_step(&schedule));
    let (hash, hash_time) = timed(|| schedule.hash());
    let memory = peak_memory();
    let (occurrences, steps) = (schedule.occurrences(), schedule.steps());
    println!("{}: {}", case.name, case.about);
    println!("  {images} images, {occurrences} occurrences, {steps} steps of {} × {micro_batch_size}", arguments.slots);
    println!("  roster    {roster_time} (with making up the images and their paths)");
    println!("  schedule  {compute_time} (epoch {})", arguments.epoch);
    println!("  hash      {hash_time}  {hash}");
    println!("  a step    {:.3} ms at most", step_time.as_secs_f64() * 1e3);
    println!("  memory    {:.1} MB at most", memory as f64 / 1e6);
    let is_good =
        roster_time.elapsed + compute_time.elapsed <= GOAL_TIME && step_time <= GOAL_STEP && memory <= GOAL_MEMORY;
    if arguments.images >= GOAL_IMAGES && !is_good {
        println!(
            "  missed: roster and schedule in {GOAL_TIME:?}, a step in {GOAL_STEP:?}, {} MB",
            GOAL_MEMORY / 1_000_000
        );
    }
    is_good || arguments.images < GOAL_IMAGES
}

/// What a piece of work took.
struct Took {
    elapsed: Duration,
    /// Of all threads: on a busy machine it says more than the clock.
    cpu_seconds: f64,
}

impl fmt::Display for Took {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.2} s, {:.2} s of CPU", self.elapsed.as_secs_f64(), self.cpu_seconds)
    }
}

fn timed<T>(work: impl FnOnce() -> T) -> (T, Took) {
    let (start, cpu_start) = (Instant::now(), cpu_seconds());
    let result = work();
    (result, Took { elapsed: start.elapsed(), cpu_seconds: cpu_seconds() - cpu_start })
}

/// Makes up images: folders of different sizes, and buckets of which some are common and some are rare.
fn make_up(case: &Case, images: u64) -> Roster {
    let buckets = buckets(512, 4.0);
    let used = buckets.len().min(17) as u64;
    let weights: Vec<u64> = (0..case.folders).map(|folder| 1 + folder * 37 % 101).collect();
    let total: u64 = weights.iter().sum();
    let names: Vec<String> = (0..case.folders).map(|folder| format!("{folder:04}")).collect();
    let batch_ids: Vec<String> = (0..case.batch_ids).map(|id| format!("id {id}")).collect();
    let mut builder = RosterBuilder::new(buckets, names.clone());
    let (mut weight, mut image) = (0, 0);
    for (folder, name) in names.iter().enumerate() {
        weight += weights[folder];
        let multiply = Decimal::parse(case.multiply[folder % case.multiply.len()]).expect("the cases have decimals");
        let has_batch_ids = case.batch_ids > 0 && folder % 2 == 1;
        let mut path = Path::new(name);
        while image < (u128::from(images) * u128::from(weight) / u128::from(total)) as u64 {
            let random = scramble(image);
            let (one, other) = (random % used, (random >> 20) % used);
            let batch_id = has_batch_ids.then(|| batch_ids[(random >> 40) as usize % batch_ids.len()].as_str());
            let bucket = one.min(other) as u16;
            builder.push(&RosterSample { path: path.next(), folder: folder as u32, multiply, bucket, batch_id });
            image += 1;
        }
    }
    builder.finish().expect("the cases have fewer uses than are allowed")
}

/// Paths of a folder's images, as `0007/000000042.png`.
struct Path {
    text: String,
    number: u64,
}

impl Path {
    fn new(folder: &str) -> Self {
        Self { text: format!("{folder}/"), number: 0 }
    }

    fn next(&mut self) -> &str {
        let folder = self.text.find('/').expect("there is one behind the folder") + 1;
        self.text.truncate(folder);
        let mut divisor = 100_000_000;
        while divisor > 0 {
            self.text.push(char::from(b'0' + (self.number / divisor % 10) as u8));
            divisor /= 10;
        }
        self.text.push_str(".png");
        self.number += 1;
        &self.text
    }
}

/// The finaliser of SplitMix64: numbers that follow each other become numbers that look random.
fn scramble(number: u64) -> u64 {
    let mixed = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// Reads the first, middle and last step and a thousand others, and returns how long the slowest took.
fn slowest_step(schedule: &EpochSchedule) -> Duration {
    let steps = schedule.steps();
    let random = (1..=1000).map(|number| scramble(number) % steps);
    let times = [0, steps / 2, steps - 1].into_iter().chain(random).map(|step| {
        let start = Instant::now();
        black_box(schedule.step(step));
        start.elapsed()
    });
    times.max().expect("there are steps")
}

/// Returns the most memory that the process has had, in bytes.
fn peak_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or("0 kB");
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap_or(0) * 1024
}

/// Returns the processor time that the process has taken.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let behind_name = stat.rsplit(')').next().unwrap_or("");
    let ticks: u64 =
        behind_name.split_whitespace().skip(11).take(2).filter_map(|ticks| ticks.parse::<u64>().ok()).sum();
    ticks as f64 / 100.0 // Linux counts hundredths of seconds
}
