//! x
pub mod collective;
pub mod images;
pub mod optimizer;
