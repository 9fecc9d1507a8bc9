//! Plots as hand-written SVG: dark text on white, few lines, colours that people with colour blindness can tell apart.

mod axis;
mod bars;
mod lines;
mod smooth;
mod svg;

pub(crate) use bars::{Bar, bars, columns};
pub(crate) use lines::{LineChart, Series};
pub(crate) use smooth::{Point, smooth};
pub(crate) use svg::shortened;

/// Colours that people with colour blindness can tell apart (Okabe & Ito, 2008), the palest left out.
pub(crate) const COLOURS: [&str; 7] = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A4B9A"];

/// What is written above a plot and beside its axes.
#[derive(Debug, Clone, Default)]
pub(crate) struct Titles {
    /// What it shows.
    pub(crate) title: String,
    /// How to read it.
    pub(crate) subtitle: String,
    /// Below the horizontal axis.
    pub(crate) across: String,
    /// Beside the vertical axis.
    pub(crate) up: String,
}
