//! What a picture shows, and the plain English that says so.

use crate::scene::{Hour, Place};
use crate::subjects::{Pose, Subject};
use crate::things::{Hue, Thing};

/// Whom a picture is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Figure {
    /// Nobody: the land alone.
    Nothing,
    /// An ordinary thing in a colour.
    Ordinary(Thing, Hue),
    /// A made-up subject in a pose.
    Taught(Subject, Pose),
}

/// Everything about a picture that its caption tells.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Motif {
    pub(crate) figure: Figure,
    pub(crate) place: Place,
    pub(crate) hour: Hour,
}

impl Motif {
    /// Says the picture in words, such as `a red house on a meadow at night`.
    pub(crate) fn caption(self) -> String {
        let hour = match self.hour {
            Hour::Day => "",
            Hour::Sunset => " at sunset",
            Hour::Night => " at night",
        };
        let floats = matches!(self.figure, Figure::Ordinary(thing, _) if thing.floats());
        let place = place_words(self.place, floats);
        match self.figure {
            Figure::Nothing => format!("{}{hour}", land_words(self.place)),
            Figure::Ordinary(thing, hue) => format!("a {} {} {place}{hour}", hue_word(hue), thing_word(thing)),
            Figure::Taught(subject, pose) => format!("a {}{} {place}{hour}", pose_word(pose), subject_word(subject)),
        }
    }
}

fn land_words(place: Place) -> &'static str {
    match place {
        Place::Meadow => "a meadow",
        Place::Desert => "the desert",
        Place::Beach => "a beach",
        Place::Snow => "the snow",
        Place::Forest => "a forest",
    }
}

fn place_words(place: Place, floats: bool) -> String {
    let preposition = match place {
        _ if floats => "over",
        Place::Meadow | Place::Beach => "on",
        Place::Desert | Place::Snow | Place::Forest => "in",
    };
    format!("{preposition} {}", land_words(place))
}

fn thing_word(thing: Thing) -> &'static str {
    match thing {
        Thing::House => "house",
        Thing::Tent => "tent",
        Thing::Car => "car",
        Thing::Balloon => "balloon",
        Thing::Mushroom => "mushroom",
        Thing::Flower => "flower",
        Thing::Cat => "cat",
        Thing::Owl => "owl",
    }
}

fn hue_word(hue: Hue) -> &'static str {
    match hue {
        Hue::Red => "red",
        Hue::Yellow => "yellow",
        Hue::Green => "green",
        Hue::Blue => "blue",
        Hue::Purple => "purple",
        Hue::White => "white",
    }
}

fn subject_word(subject: Subject) -> &'static str {
    match subject {
        Subject::Wuzzle => "wuzzle",
        Subject::Klonk => "klonk",
    }
}

fn pose_word(pose: Pose) -> &'static str {
    match pose {
        Pose::Standing => "",
        Pose::Waving => "waving ",
        Pose::Jumping => "jumping ",
        Pose::Sleeping => "sleeping ",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caption(figure: Figure, place: Place, hour: Hour) -> String {
        Motif { figure, place, hour }.caption()
    }

    #[test]
    fn captions_are_plain_english() {
        let house = Figure::Ordinary(Thing::House, Hue::Red);
        let balloon = Figure::Ordinary(Thing::Balloon, Hue::Yellow);
        let wuzzle = Figure::Taught(Subject::Wuzzle, Pose::Waving);
        assert_eq!(caption(house, Place::Meadow, Hour::Day), "a red house on a meadow");
        assert_eq!(caption(balloon, Place::Desert, Hour::Night), "a yellow balloon over the desert at night");
        assert_eq!(caption(wuzzle, Place::Snow, Hour::Sunset), "a waving wuzzle in the snow at sunset");
        assert_eq!(caption(Figure::Nothing, Place::Beach, Hour::Day), "a beach");
    }
}
