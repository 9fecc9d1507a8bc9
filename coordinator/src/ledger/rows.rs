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
#[derive(Debug, Clone, Default, PartialEq)]
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
#[derive(Debug, Clone, Default, PartialEq)]
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

/// Reads a row of commits over what is there, so that a million of them need no memory each.
pub(super) fn read_commit(row: &rusqlite::Row<'_>, stored: &mut StoredCommit) -> rusqlite::Result<()> {
    let number = |index: usize| row.get::<_, i64>(index).map(|value| value as u64);
    let StoredCommit { commit, losses_hash, chain } = stored;
    commit.step = number(0)?;
    commit.epoch = number(1)?;
    commit.first_position = number(2)?;
    commit.positions = number(3)?;
    commit.generation = number(4)?;
    commit.gradient_norm = row.get(6)?;
    for (index, bytes) in [(5, &mut commit.gradient_hash), (7, losses_hash), (8, chain)] {
        bytes.clear();
        bytes.extend_from_slice(row.get_ref(index)?.as_blob()?);
    }
    Ok(())
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
    // One piece: the hash of many small ones would take most of the time of verifying.
    let mut bytes = Vec::with_capacity(losses.len() * 40);
    for row in losses {
        bytes.extend_from_slice(&row.position.to_le_bytes());
        for number in [row.sample, row.copy, row.timestep, row.loss.to_bits()] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        bytes.extend_from_slice(&row.weight.to_bits().to_le_bytes());
        let skipped = row.skipped.as_deref().unwrap_or("");
        bytes.extend_from_slice(&(skipped.len() as u64).to_le_bytes());
        bytes.extend_from_slice(skipped.as_bytes());
    }
    blake3::hash(&bytes).as_bytes()[..16].to_vec()
}

/// Hashes a commit together with the hash of the one before it (empty for the first).
pub(crate) fn chain(previous: &[u8], commit: &Commit, losses_hash: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(160);
    bytes.extend_from_slice(&(previous.len() as u64).to_le_bytes());
    bytes.extend_from_slice(previous);
    for number in [commit.step, commit.epoch, commit.first_position, commit.positions, commit.generation] {
        bytes.extend_from_slice(&number.to_le_bytes());
    }
    bytes.extend_from_slice(&commit.gradient_norm.to_bits().to_le_bytes());
    bytes.extend_from_slice(&commit.gradient_hash);
    bytes.extend_from_slice(losses_hash);
    blake3::hash(&bytes).as_bytes()[..16].to_vec()
}
