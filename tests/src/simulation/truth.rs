//! What the run must come to: the states of the model after each step, were nothing ever to break.
//!
//! A model is one number. A step's gradient follows from the step and the state, the next state from both; so a step that is
//! lost, repeated, or made from another state shows in every later state.

use super::rng::mix;

/// State before the first step.
pub(super) const FIRST_STATE: u64 = 0x1234_5678_9abc_def0;

/// Returns the gradient of a step from a state.
pub(super) fn gradient(step: u64, state: u64) -> u64 {
    mix(state ^ mix(step + 1))
}

/// Returns the state that a step leads to.
pub(super) fn apply(state: u64, gradient: u64) -> u64 {
    mix(state.rotate_left(7) ^ gradient)
}

/// Returns the state after so many steps, for each count up to `steps`.
pub(super) fn states(steps: u64) -> Vec<u64> {
    let mut states = vec![FIRST_STATE];
    for step in 0..steps {
        let state = *states.last().expect("there is a first state");
        states.push(apply(state, gradient(step, state)));
    }
    states
}

/// Writes a hash as the core sees it.
pub(super) fn hash(number: u64) -> String {
    format!("{number:016x}")
}
