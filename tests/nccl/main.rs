//! Whole runs in one process: a coordinator, real workers on the CPU, and a simulated NCCL between them, which adds up what
//! they compute. The model must come out as one worker alone makes it, bit by bit, whatever happens to NCCL.

mod lab;

use std::sync::Mutex;
use std::sync::mpsc;

use ballast_collective::Collective;
use ballast_coordinator::{Outcome, RunEvent};
use ballast_cuda::nccl::fake::{Fake, FakeWorld, Fault};
use ballast_cuda::nccl::{NcclError, ReduceInPlace, UniqueId};
use ballast_worker::{NcclAbility, NcclLibrary, NcclMember, NcclOnDevice, WorkerError};
use lab::{Crew, Lab};

fn able(number: usize, library: impl NcclLibrary + 'static) -> Option<NcclAbility> {
    Some(NcclAbility::Able(NcclOnDevice::new("2.30.7".into(), format!("GPU-{number}"), false, library)))
}

fn sound(world: &FakeWorld, count: usize) -> Vec<Option<NcclAbility>> {
    (0..count).map(|number| able(number, world.rank(vec![]))).collect()
}

/// What was said about going without NCCL.
fn notices(events: &[RunEvent]) -> Vec<&str> {
    let mut notices = Vec::new();
    for event in events {
        if let RunEvent::Notice { message } = event {
            notices.push(message.as_str());
        }
    }
    notices
}

#[tokio::test(flavor = "multi_thread")]
async fn gradients_over_nccl_make_the_model_of_one_worker() {
    let lab = Lab::new();
    let alone = lab.alone().await;
    let world = FakeWorld::in_real_time();
    let crew = Crew::start(&lab, "three", &[], sound(&world, 3)).await;
    let (outcome, events) = crew.finish().await;
    assert!(matches!(outcome, Ok(Outcome::Finished { .. })), "{outcome:?}");
    assert_eq!(notices(&events), Vec::<&str>::new());
    assert_eq!(world.formed(), 1, "one generation, one id");
    assert!(lab.model("three") == alone, "three workers over NCCL make another model than one");
}

/// Fast sums have an order of their own: the run ends, all ranks vote alike.
#[tokio::test(flavor = "multi_thread")]
async fn fast_sums_are_the_default_over_nccl() {
    let lab = Lab::new();
    let world = FakeWorld::in_real_time();
    let crew = Crew::start(&lab, "fast", &[("cluster.reduction", "none")], sound(&world, 2)).await;
    let (outcome, events) = crew.finish().await;
    assert!(matches!(outcome, Ok(Outcome::Finished { .. })), "{outcome:?}");
    assert_eq!((notices(&events).len(), world.formed()), (0, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_worker_leads_to_a_new_id_and_to_the_same_model() {
    let lab = Lab::new();
    let alone = lab.alone().await;
    // Rank 0 makes the ids: it is lost on the way; and another one.
    for lost in [0, 2] {
        let name = format!("lost-{lost}");
        let world = FakeWorld::in_real_time();
        let mut crew = Crew::start(&lab, &name, &[], sound(&world, 3)).await;
        crew.wait_for(|event| matches!(event, RunEvent::Stepped { step: 1, .. })).await;
        crew.stop(lost).await;
        let (outcome, events) = crew.finish().await;
        assert!(matches!(outcome, Ok(Outcome::Finished { .. })), "{outcome:?}");
        assert_eq!(notices(&events), Vec::<&str>::new());
        // More if a survivor saw the other leave before it heard of it.
        assert!(world.formed() >= 2, "a generation more, an id more");
        assert!(lab.model(&name) == alone, "the model is another one when worker {lost} is lost");
    }
}

/// A library that takes its time for an id.
struct Slow {
    library: Fake,
    asked: Mutex<Option<tokio::sync::oneshot::Sender<()>>>,
    answer: Mutex<mpsc::Receiver<()>>,
}

impl NcclLibrary for Slow {
    fn make_id(&self) -> Result<UniqueId, NcclError> {
        if let Some(asked) = self.asked.lock().unwrap().take() {
            let _ = asked.send(());
        }
        let _ = self.answer.lock().unwrap().recv();
        NcclLibrary::make_id(&self.library)
    }

    fn form(&self, member: NcclMember, id: &UniqueId) -> Result<Box<dyn Collective>, NcclError> {
        self.library.form(member, id)
    }

    fn form_in_place(&self, member: NcclMember, id: &UniqueId) -> Result<Box<dyn ReduceInPlace>, NcclError> {
        self.library.form_in_place(member, id)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rank_0_that_dies_before_its_id_is_there_leaves_nobody_waiting() {
    let lab = Lab::new();
    let alone = lab.alone().await;
    let world = FakeWorld::in_real_time();
    let (asked, is_asked) = tokio::sync::oneshot::channel();
    let (let_go, answer) = mpsc::channel();
    let slow = Slow { library: world.rank(vec![]), asked: Mutex::new(Some(asked)), answer: Mutex::new(answer) };
    // Whoever joins first is rank 0.
    let mut crew = Crew::open(&lab, "early", &[], 3).await;
    crew.join(able(0, slow)).await;
    crew.join(able(1, world.rank(vec![]))).await;
    crew.join(able(2, world.rank(vec![]))).await;
    is_asked.await.unwrap();
    crew.stop(0).await;
    let (outcome, events) = crew.finish().await;
    drop(let_go);
    assert!(matches!(outcome, Ok(Outcome::Finished { .. })), "{outcome:?}");
    assert_eq!((notices(&events).len(), world.formed()), (0, 1));
    assert!(lab.model("early") == alone);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_cannot_use_nccl_sends_all_to_tcp_and_the_reason_is_said() {
    let lab = Lab::new();
    let alone = lab.alone().await;
    let world = FakeWorld::in_real_time();
    let unable = NcclAbility::Unable { problem: "NCCL was not found".into(), hint: "install NCCL 2".into() };
    let old = NcclOnDevice::new("2.18.5".into(), "GPU-7".into(), false, world.rank(vec![]));
    let cases = [
        ("missing", Some(unable), "cannot use NCCL: NCCL was not found (hint: install NCCL 2)"),
        ("cpu", None, "cannot use NCCL: it computes on the CPU"),
        ("version", Some(NcclAbility::Able(old)), "and all need the same"),
        ("same-gpu", able(0, world.rank(vec![])), "NCCL needs one for each"),
    ];
    for (name, last, reason) in cases {
        let mut crew = Crew::open(&lab, name, &[], 2).await;
        crew.join(able(0, world.rank(vec![]))).await;
        crew.join(last).await;
        let (outcome, events) = crew.finish().await;
        assert!(matches!(outcome, Ok(Outcome::Finished { .. })), "{name}: {outcome:?}");
        let [notice] = notices(&events)[..] else { panic!("{name}: {events:?}") };
        assert!(notice.starts_with("gradients go over TCP") && notice.contains(reason), "{name}: {notice}");
        assert!(lab.model(name) == alone, "{name}: over TCP the model is another one");
    }
    assert_eq!(world.formed(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn nccl_that_does_not_work_is_given_up_for_tcp() {
    let lab = Lab::new();
    let alone = lab.alone().await;
    let cases = [
        ("no-id", "ncclGetUniqueId", "worker 1 cannot use NCCL: NCCL failed while making an id"),
        ("no-comm", "ncclCommInitRankConfig", "NCCL failed 3 times in a row"),
        ("no-send", "ncclSend", "NCCL failed 3 times in a row"),
    ];
    for (name, call, reason) in cases {
        let world = FakeWorld::in_real_time();
        let mut crew = Crew::open(&lab, name, &[], 2).await;
        crew.join(able(0, world.rank(vec![Fault::Call(call)]))).await;
        crew.join(able(1, world.rank(vec![]))).await;
        let (outcome, events) = crew.finish().await;
        assert!(matches!(outcome, Ok(Outcome::Finished { .. })), "{name}: {outcome:?}");
        let [notice] = notices(&events)[..] else { panic!("{name}: {events:?}") };
        assert!(notice.contains(reason), "{name}: {notice}");
        assert!(lab.model(name) == alone, "{name}: over TCP the model is another one");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_insists_turns_others_away_by_name() {
    let lab = Lab::new();
    let world = FakeWorld::in_real_time();
    let mut crew = Crew::open(&lab, "insists", &[("cluster.collective", "nccl")], 2).await;
    crew.join(able(0, world.rank(vec![]))).await;
    let Err(WorkerError::Refused { reason }) = crew.try_join(None).await else { panic!("it is refused") };
    assert!(reason.contains("cluster.collective is \"nccl\"") && reason.contains("on the CPU"), "{reason}");
    let Err(WorkerError::Refused { reason }) = crew.try_join(able(0, world.rank(vec![]))).await else { panic!() };
    assert!(reason.contains("the same GPU as worker 1"), "{reason}");
    crew.join(able(1, world.rank(vec![]))).await;
    let (outcome, _) = crew.finish().await;
    assert!(matches!(outcome, Ok(Outcome::Finished { .. })), "{outcome:?}");
    assert_eq!(world.formed(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_asks_for_tcp_uses_it() {
    let lab = Lab::new();
    let world = FakeWorld::in_real_time();
    let crew = Crew::start(&lab, "tcp", &[("cluster.collective", "tcp")], sound(&world, 2)).await;
    let (outcome, events) = crew.finish().await;
    assert!(matches!(outcome, Ok(Outcome::Finished { .. })), "{outcome:?}");
    assert_eq!((notices(&events).len(), world.formed()), (0, 0));
}
