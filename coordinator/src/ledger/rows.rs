//! What the ledger's rows hold, and the hashes that bind them.

use ballast_common::dataset::Decimal;

/// A sample of the run, with what the report needs to know of it when its picture is gone.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct SampleRow<'a> {
    /// Relative to the data root, with `/`.
    pub(crate) path: &'a str,
    /// Number of its folder in the ledger's `folders` table.
    pub(crate) folder: u32,
    /// How often it is used per epoch, written exactly.
    pub(crate) multiply: Decimal,
    /// Weight of its loss.
    pub(crate) loss_scale: f64,
}

/// A step that counts.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Commit {
    /// 0-based over the whole run.
    pub(crate) step: u64,
    /// Its epoch, 0-based.
    pub(crate) epoch: u64,
    /// First position of the epoch's schedule that the step covers.
    pub(crate) first_position: u64,
    /// Count of positions it covers, without gaps.
    pub(crate) positions: u64,
    /// Worker set that computed it.
    pub(crate) generation: u64,
    /// BLAKE3 of the reduced gradient.
    pub(crate) gradient_hash: Vec<u8>,
    /// Global L2 norm of the reduced gradient before clipping.
    pub(crate) gradient_norm: f64,
    /// One row for each position, in order.
    pub(crate) losses: Vec<LossRow>,
}

/// What one occurrence contributed.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct LossRow {
    /// Place in the epoch's schedule, 0-based.
    pub(crate) position: u64,
    /// Number of the sample in the ledger's `samples` table.
    pub(crate) sample: u32,
    /// Which of the sample's uses in this epoch.
    pub(crate) copy: u32,
    /// Diffusion timestep.
    pub(crate) timestep: u32,
    /// Unweighted loss.
    pub(crate) loss: f32,
    /// Weight in the gradient, without the normaliser.
    pub(crate) weight: f64,
    /// Why the picture could not be used, if it could not.
    pub(crate) skipped: Option<String>,
}

/// A commit as `verify` reads it back.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct StoredCommit {
    pub(crate) commit: Commit,
    pub(crate) losses_hash: Vec<u8>,
    pub(crate) chain: Vec<u8>,
}

/// A member of a generation, by rank.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MemberRow {
    /// Number of the worker within the run.
    pub(crate) worker: u64,
    /// Host it runs on.
    pub(crate) host: String,
    /// Device it trains on.
    pub(crate) device: String,
    /// Its process id on that host.
    pub(crate) process_id: u32,
}

pub(super) fn stored_commit(row: &rusqlite::Row<'_>) -> rusqlite::Result<StoredCommit> {
    let number = |index: usize| row.get::<_, i64>(index).map(|value| value as u64);
    Ok(StoredCommit {
        commit: Commit {
            step: number(0)?,
            epoch: number(1)?,
            first_position: number(2)?,
            positions: number(3)?,
            generation: number(4)?,
            gradient_hash: row.get(5)?,
            gradient_norm: row.get(6)?,
            losses: Vec::new(),
        },
        losses_hash: row.get(7)?,
        chain: row.get(8)?,
    })
}

pub(super) fn loss_row(row: &rusqlite::Row<'_>) -> rusqlite::Result<LossRow> {
    Ok(LossRow {
        position: row.get::<_, i64>(1)? as u64,
        sample: row.get(2)?,
        copy: row.get(3)?,
        timestep: row.get(4)?,
        loss: row.get::<_, f64>(5)? as f32,
        weight: row.get(6)?,
        skipped: row.get(7)?,
    })
}

/// Hashes the losses of a step. 16 bytes: it guards against damage, the chain guards the order.
pub(crate) fn losses_hash(losses: &[LossRow]) -> Vec<u8> {
    let mut hasher = blake3::Hasher::new();
    for row in losses {
        hasher.update(&row.position.to_le_bytes());
        for number in [row.sample, row.copy, row.timestep, row.loss.to_bits()] {
            hasher.update(&number.to_le_bytes());
        }
        hasher.update(&row.weight.to_bits().to_le_bytes());
        let skipped = row.skipped.as_deref().unwrap_or("");
        hasher.update(&(skipped.len() as u64).to_le_bytes()).update(skipped.as_bytes());
    }
    hasher.finalize().as_bytes()[..16].to_vec()
}

/// Hashes a commit together with the hash of the one before it (empty for the first).
pub(crate) fn chain(previous: &[u8], commit: &Commit, losses_hash: &[u8]) -> Vec<u8> {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&(previous.len() as u64).to_le_bytes()).update(previous);
    for number in [commit.step, commit.epoch, commit.first_position, commit.positions, commit.generation] {
        hasher.update(&number.to_le_bytes());
    }
    hasher.update(&commit.gradient_norm.to_bits().to_le_bytes());
    hasher.update(&commit.gradient_hash).update(losses_hash);
    hasher.finalize().as_bytes()[..16].to_vec()
}
