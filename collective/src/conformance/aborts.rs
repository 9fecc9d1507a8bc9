//! Promises 4 to 7: what happens when a generation is cancelled, or a member leaves or falls silent, and after it.

use std::sync::Barrier;
use std::time::{Duration, Instant};

use super::cases::{Case, bits};
use super::{Generations, Member, PATIENT};
use crate::{CollectiveError, Limits};

/// At once, on a machine that is busy with something else.
const AT_ONCE: Duration = Duration::from_secs(5);
/// So much that a reduction takes some milliseconds.
const ELEMENTS: usize = 3_000_001;
/// When members are cancelled, in parts of a whole reduction's time: before, at many moments in it, and after.
const MOMENTS: u32 = 12;

pub(super) fn check(generations: &mut Generations<'_>) {
    cancelled_before(generations);
    for world_size in generations.worlds_of_several() {
        cancelled_while_waiting(generations, world_size);
        cancelled_at_any_moment(generations, world_size);
        a_member_leaves(generations, world_size);
        a_member_is_silent(generations, world_size);
    }
}

fn case(world_size: usize) -> Case {
    Case::dealt(world_size as u32 + 2, world_size as u32 + 2, world_size, ELEMENTS)
}

/// Runs all members to their ends, each on a thread of its own. Members come back.
fn reduce_all(members: &mut [Member], case: &Case) -> Vec<(Result<Vec<f32>, CollectiveError>, Instant)> {
    std::thread::scope(|scope| {
        let reduce = |(rank, member): (usize, &'_ mut Member)| {
            let result = case.reduce(member.collective.as_mut(), 0, rank);
            (result, Instant::now())
        };
        let runs: Vec<_> = members.iter_mut().enumerate().map(|entry| scope.spawn(move || reduce(entry))).collect();
        runs.into_iter().map(|run| run.join().expect("the rank's own panic has been printed")).collect()
    })
}

/// A generation of this world works, and leaves nothing behind.
fn assert_works(generations: &mut Generations<'_>, world_size: usize) {
    let case = Case::dealt(5, 5, world_size, 1000);
    let mut members = generations.form(world_size, PATIENT);
    let expected = bits(&case.sum(0));
    for (result, _) in reduce_all(&mut members, &case) {
        let sum = result.unwrap_or_else(|error| panic!("{}: {error:?}", generations.implementation.name()));
        assert!(!generations.implementation.is_exact() || bits(&sum) == expected, "a new generation adds wrongly");
    }
    drop(members);
    generations.assert_nothing_remains(0);
}

fn cancelled_before(generations: &mut Generations<'_>) {
    let name = generations.implementation.name();
    for world_size in generations.implementation.world_sizes() {
        let mut members = generations.form(world_size, PATIENT);
        members[0].cancel.cancel();
        let start = Instant::now();
        let result = Case::dealt(3, 3, world_size, 10).reduce(members[0].collective.as_mut(), 0, 0);
        assert!(matches!(result, Err(CollectiveError::Cancelled)), "{name}: {result:?}");
        assert!(start.elapsed() < AT_ONCE, "{name}: took {:?}", start.elapsed());
    }
}

/// One rank computes for ever; the others wait for it.
fn cancelled_while_waiting(generations: &mut Generations<'_>, world_size: usize) {
    let name = generations.implementation.name();
    let mut members = generations.form(world_size, PATIENT);
    let (absent, waiting) = members.split_last_mut().expect("there are several");
    let tokens: Vec<_> = waiting.iter().map(|member| member.cancel.clone()).collect();
    let case = case(world_size);
    std::thread::scope(|scope| {
        let run = scope.spawn(|| reduce_all(waiting, &case));
        std::thread::sleep(Duration::from_millis(50)); // long enough to be waiting; nothing depends on it
        let start = Instant::now();
        tokens.iter().for_each(|token| token.cancel());
        for (rank, (result, end)) in run.join().expect("its own panic has been printed").into_iter().enumerate() {
            // The first is cancelled first; the others may see it leave before they are.
            let is_right = matches!(&result, Err(CollectiveError::Cancelled))
                || rank > 0 && matches!(&result, Err(CollectiveError::Link { .. }));
            assert!(is_right, "{name}: {result:?}");
            assert!(end - start < AT_ONCE, "{name}: took {:?}", end - start);
        }
    });
    absent.cancel.cancel();
    drop(members);
    generations.assert_nothing_remains(0);
    assert_works(generations, world_size);
}

/// All are cancelled in the midst of a reduction: each has the whole sum or says that it was cancelled (or that a peer that
/// was cancelled earlier is gone), and the next generation works.
fn cancelled_at_any_moment(generations: &mut Generations<'_>, world_size: usize) {
    let name = generations.implementation.name().to_owned();
    let case = case(world_size);
    let expected = bits(&case.sum(0));
    let mut members = generations.form(world_size, PATIENT);
    let whole = {
        // Twice: connecting is not a part of it.
        reduce_all(&mut members, &case);
        let start = Instant::now();
        reduce_all(&mut members, &case);
        start.elapsed()
    };
    drop(members);
    for moment in 0..=MOMENTS {
        let mut members = generations.form(world_size, PATIENT);
        let tokens: Vec<_> = members.iter().map(|member| member.cancel.clone()).collect();
        let begin = Barrier::new(2);
        let cancelled_at = std::thread::scope(|scope| {
            let canceller = scope.spawn(|| {
                begin.wait();
                std::thread::sleep(whole * moment / (MOMENTS - 1));
                tokens.iter().for_each(|token| token.cancel());
                Instant::now()
            });
            begin.wait();
            for (result, end) in reduce_all(&mut members, &case) {
                match result {
                    Ok(sum) => assert!(!generations.implementation.is_exact() || bits(&sum) == expected),
                    Err(CollectiveError::Cancelled | CollectiveError::Link { .. }) => {}
                    Err(error) => panic!("{name}: {error:?}"),
                }
                assert!(end.elapsed() < AT_ONCE, "{name}");
            }
            canceller.join().expect("it only sleeps")
        });
        assert!(cancelled_at.elapsed() < AT_ONCE, "{name}: took {:?}", cancelled_at.elapsed());
        // Whoever has its sum does not go on.
        let again = case.reduce(members[0].collective.as_mut(), 1, 0);
        assert!(again.is_err(), "{name}: a cancelled generation reduces");
        drop(members);
        assert_works(generations, world_size);
    }
}

/// A member is dropped, as when its process dies: the others see it at once, and are of no use afterwards.
fn a_member_leaves(generations: &mut Generations<'_>, world_size: usize) {
    let name = generations.implementation.name().to_owned();
    let mut members = generations.form(world_size, PATIENT);
    reduce_all(&mut members, &Case::dealt(3, 3, world_size, 10));
    let leaving = members.pop().expect("there are several");
    let case = case(world_size);
    let start = Instant::now();
    drop(leaving);
    let results = reduce_all(&mut members, &case);
    let took = start.elapsed();
    assert!(took < AT_ONCE, "{name}: took {took:?}");
    assert_some_names(&name, &results, world_size - 1);
    let again = case.reduce(members[0].collective.as_mut(), 1, 0);
    assert!(matches!(again, Err(CollectiveError::Broken { .. })), "{name}: {again:?}");
    drop(members);
    assert_works(generations, world_size);
}

/// A member never takes part: the others give up within the limits and say whom they waited for.
fn a_member_is_silent(generations: &mut Generations<'_>, world_size: usize) {
    let name = generations.implementation.name().to_owned();
    let limit = Duration::from_secs(1); // for connecting too
    let mut members = generations.form(world_size, Limits { link: limit, straggler: limit });
    let silent = members.pop().expect("there are several");
    let start = Instant::now();
    let results = reduce_all(&mut members, &case(world_size));
    let took = start.elapsed();
    assert!(took >= limit && took < limit + AT_ONCE, "{name}: took {took:?} of {limit:?}");
    assert_some_names(&name, &results, world_size - 1);
    drop((silent, members));
    assert_works(generations, world_size);
}

/// All fail, and the first to notice, at least, names the rank; the others may see that one leave.
fn assert_some_names(name: &str, results: &[(Result<Vec<f32>, CollectiveError>, Instant)], rank: usize) {
    let errors: Vec<_> = results.iter().map(|(result, _)| result.as_ref().expect_err("no sum is whole")).collect();
    assert!(
        errors.iter().any(|error| error.peer() == Some(rank as u32)),
        "{name}: nobody names rank {rank}: {errors:?}"
    );
}
