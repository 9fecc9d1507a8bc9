//! Tests of the repository as a whole, one binary so that it links once.

mod arrows;
mod documents;
mod scripts;
mod simulation;
