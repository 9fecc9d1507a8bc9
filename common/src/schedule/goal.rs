//! Multipliers from a goal: how often the images of each folder have to be used so that the folders stand to each other as a
//! person wants them to. Pure: what it proposes is shown and written elsewhere.
//!
//! A goal gives each folder a part of the epoch, the part becomes a whole number of uses, and the multiplier is the shortest
//! decimal with which every epoch of the run has exactly that number.

mod error;
mod names;
mod report;

pub use error::GoalError;
pub use report::{BalanceReport, BalanceRow, BeforeAfter};

use names::Names;

use crate::dataset::{Dataset, Decimal};

/// The most that an image can be used per epoch.
const MULTIPLY_MAX: u64 = 10_000;

/// More occurrences than this no schedule holds.
const EPOCH_MAX: u64 = 1_000_000_000;

/// How the folders shall stand to each other.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Goal {
    /// Groups of folders; those of a group become equal, and keep together what they had together.
    pub equal: Vec<Vec<String>>,
    /// Folders, and which part of the epoch they get together.
    pub shares: Vec<(String, f64)>,
    /// Whether folders that no goal names keep their proportions. Otherwise they become equal, unless `equal` names some.
    pub keep: bool,
    /// How large an epoch is.
    pub size: EpochSize,
    /// What is balanced.
    pub weigh: Weigh,
}

/// How large an epoch is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum EpochSize {
    /// As large as it is today.
    #[default]
    Today,
    /// So many occurrences.
    Occurrences(u64),
    /// So many occurrences of each folder.
    PerFolder(u64),
}

/// What is balanced.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Weigh {
    /// How often images are used.
    #[default]
    Count,
    /// How often they are used × their loss scale.
    Loss,
}

/// A multiplier for a folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Proposal {
    /// The multiplier. The folder's own where nothing has to change.
    pub multiply: Decimal,
    /// Occurrences per epoch that it is made for. None where the folder is left as it is.
    pub count: Option<u64>,
}

/// What the goal needs to know of a folder.
struct Facts {
    path: String,
    /// Images that the folder's multiplier holds for.
    images: u64,
    multiply: Decimal,
    /// Uses per epoch of images with a multiplier of their own.
    own_uses: f64,
    /// Uses per epoch.
    uses: f64,
    /// Size of the mean loss scale of a use.
    scale: f64,
}

impl Goal {
    /// Proposes a multiplier for each folder of the dataset, in its order, for a run of so many epochs.
    ///
    /// # Errors
    /// When the goal names what is not there, or cannot be reached.
    pub fn propose(&self, dataset: &Dataset, epochs: u64) -> Result<Vec<Proposal>, GoalError> {
        let facts = facts(dataset);
        let wanted = self.wanted(&facts)?;
        facts.iter().zip(wanted).map(|(folder, wanted)| folder.propose(wanted, epochs)).collect()
    }

    /// Returns how many uses per epoch each folder shall have.
    fn wanted(&self, facts: &[Facts]) -> Result<Vec<f64>, GoalError> {
        let today: f64 = facts.iter().map(|folder| folder.uses).sum();
        let total = match self.size {
            EpochSize::Today => today,
            EpochSize::Occurrences(count) => {
                let least = facts.len() as u64;
                if !(least..=EPOCH_MAX).contains(&count) {
                    return Err(GoalError::EpochSize { count, least, most: EPOCH_MAX });
                }
                count as f64
            }
            EpochSize::PerFolder(count) => return Ok(vec![count as f64; facts.len()]),
        };
        let parts = self.parts(facts)?;
        if self.weigh == Weigh::Loss
            && let Some(folder) = facts.iter().find(|folder| folder.scale == 0.0)
        {
            return Err(GoalError::Weightless { folder: folder.path.clone() });
        }
        let uses: Vec<f64> = match self.weigh {
            Weigh::Count => parts,
            Weigh::Loss => parts.iter().zip(facts).map(|(part, folder)| part / folder.scale).collect(),
        };
        let sum: f64 = uses.iter().sum();
        Ok(uses.iter().map(|uses| uses / sum * total).collect())
    }

    /// Returns which part of what is balanced each folder shall have; they add up to 1.
    fn parts(&self, facts: &[Facts]) -> Result<Vec<f64>, GoalError> {
        let names = Names::new(facts.iter().map(|folder| folder.path.as_str()));
        let mut named = vec![false; facts.len()];
        let mut claim = |name: &str| -> Result<Vec<usize>, GoalError> {
            let folders = names.find(name)?;
            for &folder in &folders {
                if std::mem::replace(&mut named[folder], true) {
                    return Err(GoalError::NamedTwice { folder: facts[folder].path.clone() });
                }
            }
            Ok(folders)
        };
        let equal = self.equal.iter().map(|group| {
            let found: Result<Vec<Vec<usize>>, GoalError> = group.iter().map(|name| claim(name)).collect();
            Ok(found?.concat())
        });
        let equal = equal.collect::<Result<Vec<Vec<usize>>, GoalError>>()?;
        let shares = self.shares.iter().map(|(name, share)| Ok((claim(name)?, *share)));
        let shares = shares.collect::<Result<Vec<(Vec<usize>, f64)>, GoalError>>()?;

        let value = |folder: &Facts| match self.weigh {
            Weigh::Count => folder.uses,
            Weigh::Loss => folder.uses * folder.scale,
        };
        let is_rest_equal = !self.keep && equal.is_empty();
        let mut parts: Vec<f64> = facts.iter().map(|folder| if is_rest_equal { 1.0 } else { value(folder) }).collect();
        equal.iter().for_each(|group| level(&mut parts, group));
        let mut is_rest = vec![true; facts.len()];
        shares.iter().flat_map(|(group, _)| group).for_each(|&folder| is_rest[folder] = false);
        let rest: Vec<usize> = (0..facts.len()).filter(|&folder| is_rest[folder]).collect();
        scale_to(&mut parts, &rest, 1.0 - taken(&shares, &rest, facts)?);
        for (group, share) in &shares {
            if !self.keep {
                level(&mut parts, group);
            }
            scale_to(&mut parts, group, *share);
        }
        Ok(parts)
    }
}

/// Adds up the shares, and checks that they leave something to the others.
fn taken(shares: &[(Vec<usize>, f64)], rest: &[usize], facts: &[Facts]) -> Result<f64, GoalError> {
    for (group, share) in shares {
        let is_all = group.len() == facts.len() && *share == 1.0;
        if !(*share > 0.0 && *share < 1.0 || is_all) {
            return Err(GoalError::Share { folder: facts[group[0]].path.clone(), percent: percent(*share) });
        }
    }
    let taken: f64 = shares.iter().map(|(_, share)| share).sum();
    let is_whole = (taken - 1.0).abs() < 1e-9;
    match rest.is_empty() {
        true if shares.is_empty() || is_whole => Ok(taken),
        true => Err(GoalError::SharesLeaveARest { percent: percent(taken) }),
        false if taken < 1.0 && !is_whole => Ok(taken),
        false => Err(GoalError::SharesTakeAll { percent: percent(taken), others: rest.len() }),
    }
}

/// Returns a part of 1 as a percentage as one would write it: 0.6 + 0.5 is 110, and not 110.00000000000001.
fn percent(part: f64) -> f64 {
    (part * 1e8).round() / 1e6
}

/// Gives all of a group the same part.
fn level(parts: &mut [f64], group: &[usize]) {
    let mean = group.iter().map(|&folder| parts[folder]).sum::<f64>() / group.len() as f64;
    group.iter().for_each(|&folder| parts[folder] = mean);
}

/// Brings the parts of a group to a sum.
fn scale_to(parts: &mut [f64], group: &[usize], sum: f64) {
    let now: f64 = group.iter().map(|&folder| parts[folder]).sum();
    group.iter().for_each(|&folder| parts[folder] *= sum / now);
}

impl Facts {
    fn propose(&self, wanted: f64, epochs: u64) -> Result<Proposal, GoalError> {
        if (wanted - self.uses).abs() <= 1e-9 * self.uses {
            return Ok(Proposal { multiply: self.multiply, count: None });
        }
        let count = (wanted + 0.5).floor().max(1.0) as u64; // every folder comes up, however small its part
        let own = self.own_uses.round() as u64;
        let impossible = || GoalError::OutOfReach {
            folder: self.path.clone(),
            count,
            least: own + 1,
            most: own + self.images * MULTIPLY_MAX,
            images: self.images,
        };
        let by_folder = count.checked_sub(own).filter(|count| *count > 0 && self.images > 0).ok_or_else(impossible)?;
        if by_folder > self.images * MULTIPLY_MAX {
            return Err(impossible());
        }
        let all = u128::from(self.images) * u128::from(epochs);
        let uses = all * u128::from(self.multiply.whole()) + self.multiply.fraction_of(all);
        let is_there = uses == u128::from(by_folder) * u128::from(epochs);
        let multiply = if is_there { self.multiply } else { multiplier(self.images, by_folder, epochs) };
        Ok(Proposal { multiply, count: Some(count) })
    }
}

/// Returns the shortest decimal that uses so many images exactly `count` times, all together, in each of so many epochs.
fn multiplier(images: u64, count: u64, epochs: u64) -> Decimal {
    let [images, count, epochs] = [images, count, epochs].map(u128::from);
    let exact_enough = |decimals: u32| {
        let scale = 10u128.pow(decimals);
        let digits = (count * scale + images / 2) / images;
        let off = (digits * images).abs_diff(count * scale);
        // What is missing after the last epoch still rounds to nothing.
        (digits > 0 && off * 2 * epochs < scale).then_some((digits, decimals))
    };
    let (digits, decimals) =
        (0..24).find_map(exact_enough).expect("24 decimals are enough for 10^12 images in all epochs");
    Decimal::parse(&format!("{digits}e-{decimals}")).expect("digits and an exponent are a number")
}

fn facts(dataset: &Dataset) -> Vec<Facts> {
    let fact = |folder: &crate::dataset::Folder| Facts {
        path: folder.path.clone(),
        images: 0,
        multiply: folder.multiply,
        own_uses: 0.0,
        uses: 0.0,
        scale: 0.0,
    };
    let mut facts: Vec<Facts> = dataset.folders.iter().map(fact).collect();
    for sample in &dataset.samples {
        let folder = &mut facts[sample.folder as usize];
        if sample.multiply == folder.multiply {
            folder.images += 1;
        } else {
            folder.own_uses += sample.multiply.to_f64();
        }
    }
    for folder in &mut facts {
        folder.uses = folder.own_uses + folder.images as f64 * folder.multiply.to_f64();
    }
    mean_scales(dataset, &mut facts);
    facts
}

/// The mean loss scale of a folder's uses. A multiplier is turned into a float once per folder: it takes time.
fn mean_scales(dataset: &Dataset, facts: &mut [Facts]) {
    let multipliers: Vec<f64> = facts.iter().map(|folder| folder.multiply.to_f64()).collect();
    for sample in &dataset.samples {
        let index = sample.folder as usize;
        let is_own = sample.multiply != facts[index].multiply;
        let uses = if is_own { sample.multiply.to_f64() } else { multipliers[index] };
        facts[index].scale += sample.loss_scale * uses;
    }
    facts.iter_mut().for_each(|folder| folder.scale = (folder.scale / folder.uses).abs());
}

#[cfg(test)]
mod tests;
