//! The schedule's hash and its text file: the proof of the balance, the same bytes on every machine.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::ops::Range;
use std::path::Path;

use super::{EpochSchedule, threads};
use crate::dataset::Dataset;

/// The hash function takes large pieces several times faster than small ones.
const BYTES_AT_ONCE: usize = 1 << 20;

impl EpochSchedule {
    /// Hashes all that the schedule says: which images, in which bucket, step and slot, and which copy of each, as hexadecimal digits.
    pub fn hash(&self) -> String {
        let mut hasher = blake3::Hasher::new_derive_key("ballast epoch schedule v1");
        hasher.update(&self.paths_hash);
        for number in [self.epoch(), self.steps(), self.micro_batches(), self.occurrences()] {
            hasher.update(&number.to_le_bytes());
        }
        let steps = self.steps() as usize;
        let length = (BYTES_AT_ONCE / (12 + 8 * self.arrangement.micro_batch_size) / self.arrangement.slots).max(1);
        let piece = |number: usize| number * length..((number + 1) * length).min(steps);
        threads::in_order(
            threads::worth(self.occurrences()),
            steps.div_ceil(length),
            |number| self.encode(piece(number)),
            |bytes| {
                hasher.update(&bytes);
            },
        );
        hasher.finalize().to_hex().to_string()
    }

    /// Returns what the hash takes in of some steps.
    fn encode(&self, steps: Range<usize>) -> Vec<u8> {
        let arrangement = &self.arrangement;
        let places = arrangement.places_of_steps(steps);
        let mut bytes = Vec::with_capacity(places.len() * (16 + 8 * arrangement.micro_batch_size));
        arrangement.visit(places, |place, stretch, indices| {
            if place % arrangement.slots == 0 {
                let slots = arrangement.places_of(place / arrangement.slots).len() as u32;
                bytes.extend_from_slice(&slots.to_le_bytes());
            }
            let bucket = self.buckets[usize::from(arrangement.stretches[stretch].bucket)];
            for number in [bucket.width, bucket.height, indices.len() as u32] {
                bytes.extend_from_slice(&number.to_le_bytes());
            }
            for &id in &arrangement.occurrences[indices] {
                let (sample, copy) = arrangement.ids.sample_and_copy(id);
                bytes.extend_from_slice(&(u64::from(copy) << 32 | u64::from(sample)).to_le_bytes());
            }
        });
        bytes
    }

    /// Writes the schedule as text, a line per occurrence in training order:
    /// `step:00000, slot:00, wh:[448, 576], r:0, path:cats/tom.png`, where `r` is how many images a micro-batch has that is not full.
    ///
    /// The file appears complete or not at all. Its folder is made when it is not there.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn write_file(&self, dataset: &Dataset, path: &Path) -> io::Result<()> {
        let folder = path.parent().unwrap_or(Path::new(""));
        if !folder.as_os_str().is_empty() {
            fs::create_dir_all(folder)?;
        }
        let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_string_lossy();
        let temporary = folder.join(format!(".{name}.{}.part", std::process::id()));
        let written = self.write_new_file(dataset, &temporary).and_then(|()| fs::rename(&temporary, path));
        if written.is_err() {
            fs::remove_file(&temporary).ok(); // the first error is the one that counts
        }
        written?;
        // The new name itself is durable only once its folder is. Not every platform can open one; then the rename has to do.
        let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
        File::open(folder)
            .and_then(|folder| folder.sync_all())
            .or_else(|error| if cfg!(unix) { Err(error) } else { Ok(()) })
    }

    fn write_new_file(&self, dataset: &Dataset, path: &Path) -> io::Result<()> {
        let mut file = BufWriter::with_capacity(1 << 20, File::create(path)?);
        self.write(dataset, &mut file)?;
        file.into_inner()?.sync_all()
    }

    /// Writes the lines of [`EpochSchedule::write_file`].
    ///
    /// # Errors
    /// When the writer refuses.
    pub fn write(&self, dataset: &Dataset, writer: &mut impl Write) -> io::Result<()> {
        for step in self.iter() {
            for slot in &step.slots {
                let real = slot.occurrences.len();
                let real = if real == self.micro_batch_size() as usize { 0 } else { real };
                let (width, height) = (slot.bucket.width, slot.bucket.height);
                for occurrence in &slot.occurrences {
                    let path = &dataset.samples[occurrence.sample as usize].path;
                    let (step, slot) = (step.step, slot.slot);
                    writeln!(writer, "step:{step:05}, slot:{slot:02}, wh:[{width}, {height}], r:{real}, path:{path}")?;
                }
            }
        }
        Ok(())
    }
}
