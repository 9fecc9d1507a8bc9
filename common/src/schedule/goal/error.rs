//! Why a goal cannot be followed: what was found, and what is allowed.

/// A goal that names what is not there, or cannot be reached.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum GoalError {
    /// No folder has that name.
    #[error("there is no folder {name:?} with images{}", nearest.as_ref().map_or(String::new(), |near| format!("; did you mean {near:?}?")))]
    UnknownFolder {
        /// As written.
        name: String,
        /// The nearest there is.
        nearest: Option<String>,
    },
    /// Several folders end in that name.
    #[error("{name:?} is the name of {} folders ({}); write the whole path of one", paths.len(), paths.join(", "))]
    Ambiguous {
        /// As written.
        name: String,
        /// The folders.
        paths: Vec<String>,
    },
    /// The folder holds folders and no images.
    #[error(
        "{name:?} has no images of its own, and a multiply.txt does not reach the folders below; \"{name}/\" means those"
    )]
    NoImages {
        /// The folder.
        name: String,
    },
    /// Two goals for one folder.
    #[error("{folder:?} is named twice; allowed: one goal for each folder")]
    NamedTwice {
        /// The folder.
        folder: String,
    },
    /// A share that no folder can have.
    #[error("{folder:?} cannot have a share of {percent} %; allowed: above 0 % and below 100 %")]
    Share {
        /// The folder.
        folder: String,
        /// What was asked.
        percent: f64,
    },
    /// Shares that leave nothing to the others.
    #[error(
        "the shares add up to {percent} %, which leaves nothing to the other folders (there are {others}); allowed: below 100 % together"
    )]
    SharesTakeAll {
        /// What was asked.
        percent: f64,
        /// Folders without a share.
        others: usize,
    },
    /// Shares of all folders that are less than the whole.
    #[error(
        "the shares add up to {percent} %, and no folder is left for the rest; allowed: 100 % together, or one folder without a share"
    )]
    SharesLeaveARest {
        /// What was asked.
        percent: f64,
    },
    /// An epoch too small or too large.
    #[error("an epoch of {count} occurrences is not possible; allowed: from {least} (one for each folder) to {most}")]
    EpochSize {
        /// What was asked.
        count: u64,
        /// The fewest.
        least: u64,
        /// The most.
        most: u64,
    },
    /// The count that the goal asks for is out of reach of a multiplier.
    #[error(
        "{folder:?} would have to come up {count} times per epoch; allowed with the {images} images that its multiply.txt holds for: from {least} to {most}"
    )]
    OutOfReach {
        /// The folder.
        folder: String,
        /// What the goal asks for.
        count: u64,
        /// The fewest that are possible.
        least: u64,
        /// The most that are possible.
        most: u64,
        /// Images without a multiplier of their own.
        images: u64,
    },
    /// Images that no count gives an effective share.
    #[error(
        "the loss scale of {folder:?} is 0, so no count gives it an effective share; allowed: balance by counts, or another loss_scale.txt"
    )]
    Weightless {
        /// The folder.
        folder: String,
    },
}
