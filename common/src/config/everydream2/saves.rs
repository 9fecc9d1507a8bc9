//! When EveryDream2 saves, as keys of `[checkpoint]`.

use super::Translation;

/// What EveryDream2 takes when a file says neither minutes nor epochs.
const DEFAULT_MINUTES: u32 = 20;

impl Translation<'_> {
    /// Takes over when to save. `save_every_n_epochs` goes to its equal with the plain keys.
    pub(super) fn saves(&mut self) {
        match self.value("ckpt_every_n_minutes") {
            Some(value) => self.set("checkpoint.every_minutes", "ckpt_every_n_minutes", value),
            None if self.value("save_every_n_epochs").is_none() => {
                self.set("checkpoint.every_minutes", "ckpt_every_n_minutes", DEFAULT_MINUTES.into());
                self.defaults.push(format!("ckpt_every_n_minutes {DEFAULT_MINUTES}"));
            }
            None => {}
        }
        if let Some(value) = self.value("save_ckpts_from_n_epochs") {
            self.set("checkpoint.from_epochs", "save_ckpts_from_n_epochs", value);
        }
        if self.is_on("save_every_n_epochs") || self.is_on("ckpt_every_n_minutes") {
            self.note("checkpoints: the newest ones are kept, EveryDream2 keeps all: see checkpoint.keep_last");
        }
    }
}
