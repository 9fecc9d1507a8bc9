//! Whole runs over loopback with workers that speak the protocol but compute nothing: the coordinator, its ledger and
//! `verify`, without a model.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ballast_common::checkpoint::{CheckpointState, FORMAT_VERSION, STATE_FILE, record};
use ballast_common::config::RunConfig;
use ballast_common::dataset::Dataset;
use ballast_coordinator::report::{ReportOptions, report};
use ballast_coordinator::verify::{VerifyError, verify};
use ballast_coordinator::{LEDGER_FILE, Outcome, PreparedRun, RunError, RunEvent, serve};
use ballast_proto::v1::coordinator_client::CoordinatorClient;
use ballast_proto::v1::session_request::Message as Out;
use ballast_proto::v1::session_response::Message as In;
use ballast_proto::{PROTOCOL_VERSION, v1};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;

const DEADLINE: Duration = Duration::from_secs(60);

struct Fixture {
    folder: tempfile::TempDir,
}

impl Fixture {
    /// Two folders: five pictures used once, two used 1.5 times. Steps of 2 slots × 2.
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        for (name, count) in [("once", 5), ("more", 2)] {
            let path = folder.path().join("data").join(name);
            std::fs::create_dir_all(&path).unwrap();
            for number in 0..count {
                image::RgbImage::new(64, 64).save(path.join(format!("{name} {number}.png"))).unwrap();
            }
        }
        std::fs::write(folder.path().join("data/more/multiply.txt"), "1.5").unwrap();
        std::fs::create_dir(folder.path().join("model")).unwrap();
        std::fs::write(folder.path().join("model/model_index.json"), "{}").unwrap();
        Self { folder }
    }

    fn config(&self, overrides: &[(&str, &str)]) -> RunConfig {
        let path = |name: &str| self.folder.path().join(name).to_string_lossy().into_owned();
        let (data, model) = (path("data"), path("model"));
        let mut all = vec![
            ("data.root", data.as_str()),
            ("model.path", model.as_str()),
            ("data.resolution", "64"),
            ("step.slots", "2"),
            ("step.micro_batch_size", "2"),
            ("run.epochs", "3"),
            ("sample.prompts", "[\"a\", \"b\", \"c\"]"),
            ("checkpoint.every_steps", "2"),
        ];
        all.extend(overrides);
        let all: Vec<_> = all.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
        RunConfig::load(None, &all, []).unwrap()
    }

    fn dataset(&self, config: &RunConfig) -> Dataset {
        Dataset::scan(&config.data).unwrap()
    }

    fn run_folder(&self) -> PathBuf {
        self.folder.path().join("runs/test")
    }

    fn create(&self, overrides: &[(&str, &str)]) -> Result<PreparedRun, RunError> {
        let config = self.config(overrides);
        let dataset = self.dataset(&config);
        PreparedRun::create(config, dataset, self.run_folder())
    }

    fn resume(&self, overrides: &[(&str, &str)]) -> Result<PreparedRun, RunError> {
        let config = self.config(overrides);
        let dataset = self.dataset(&config);
        PreparedRun::resume(config, dataset, self.run_folder())
    }
}

/// When a fake worker drops its connection.
#[derive(Clone, Copy, PartialEq)]
enum Fate {
    Lives,
    DiesAtPlan(u64),
    DiesAtCommit(u64),
    /// Its disk is full, but for the last save of a run.
    CannotSave,
    /// Sees other files in the data root, as on another machine.
    OtherData,
}

/// Speaks the protocol; its "gradient" is the step's number.
async fn worker(url: String, fate: Fate) -> Vec<u64> {
    let (out, requests) = mpsc::channel(64);
    let join =
        v1::Join { protocol_version: PROTOCOL_VERSION, collective_address: "0.0.0.0:1".into(), ..Default::default() };
    let say = async |message| out.send(v1::SessionRequest { message: Some(message) }).await.unwrap();
    say(Out::Join(join)).await;
    let mut client = CoordinatorClient::connect(url).await.unwrap();
    let mut inbox = client.session(ReceiverStream::new(requests)).await.unwrap().into_inner();
    let (mut applied, mut generation, mut plans) = (Vec::new(), 0, Vec::<v1::Plan>::new());
    let mut next_step = 0;
    let vote = |plan: &v1::Plan| {
        let losses =
            plan.micro_batches.iter().flat_map(|batch| &batch.occurrences).map(|occurrence| v1::OccurrenceLoss {
                position: occurrence.position,
                loss: 0.5,
                weight: occurrence.loss_scale,
                timestep: 9,
                skipped: String::new(),
            });
        let gradient_hash = format!("{:064x}", plan.step);
        Out::Reduced(v1::Reduced {
            generation: plan.generation,
            step: plan.step,
            gradient_hash,
            gradient_norm: 1.0,
            losses: losses.collect(),
            compute_seconds: 0.0,
        })
    };
    while let Ok(Some(response)) = inbox.message().await {
        match response.message.unwrap() {
            In::Welcome(welcome) => {
                next_step = welcome.next_step;
                let data_fingerprint = if fate == Fate::OtherData { "x".to_owned() } else { String::new() };
                let params_hash = "p".to_owned();
                let ready = v1::Ready {
                    next_step,
                    params_hash,
                    params_count: 1,
                    data_fingerprint,
                    chain: welcome.chain,
                    ..Default::default()
                };
                say(Out::Ready(ready)).await;
            }
            In::Group(group) => {
                assert!(group.peers.iter().all(|peer| peer.collective_address == "127.0.0.1:1"), "{group:?}");
                generation = group.generation;
                plans.clear();
            }
            In::Plan(plan) => {
                if fate == Fate::DiesAtPlan(plan.step) {
                    break;
                }
                assert_eq!(plan.generation, generation);
                if plan.step == next_step {
                    say(vote(&plan)).await;
                }
                plans.push(plan);
            }
            In::Commit(commit) => {
                if fate == Fate::DiesAtCommit(commit.step) {
                    break;
                }
                applied.push(commit.step);
                next_step = commit.step + 1;
                if let Some(plan) = plans.iter().find(|plan| plan.step == next_step && plan.generation == generation) {
                    say(vote(plan)).await;
                }
            }
            In::Abort(_) => plans.clear(),
            In::Save(save) if save.write && save.background && fate == Fate::CannotSave => {
                let v1::Save { kind, next_step, request, .. } = save;
                let error = "no space left on device".to_owned();
                let saved = v1::Saved { kind, next_step, request, error, ..Default::default() };
                say(Out::Saved(saved)).await;
            }
            In::Save(save) => {
                let hash = format!("after {}", save.next_step);
                if save.write && save.kind() == v1::save::Kind::Checkpoint {
                    let folder = Path::new(&save.run_folder).join(format!("checkpoints/step-{:06}", save.next_step));
                    std::fs::create_dir_all(&folder).unwrap();
                    std::fs::write(folder.join("weights"), &hash).unwrap();
                    let run = serde_json::from_str(&save.run_state_json).unwrap();
                    let files = BTreeMap::from([("weights".to_owned(), record(&folder.join("weights")).unwrap())]);
                    let state = CheckpointState {
                        format_version: FORMAT_VERSION,
                        run_id: "test".to_owned(),
                        next_step: save.next_step,
                        params_hash: hash.clone(),
                        run,
                        files,
                    };
                    std::fs::write(folder.join(STATE_FILE), serde_json::to_vec(&state).unwrap()).unwrap();
                }
                let (kind, next_step, request) = (save.kind, save.next_step, save.request);
                let saved = v1::Saved { kind, next_step, params_hash: hash, request, ..Default::default() };
                say(Out::Saved(saved)).await;
            }
            In::Sample(sample) => {
                let paths = sample.prompts.iter().map(|prompt| format!("{}/{prompt}.png", sample.folder)).collect();
                let v1::Sample { next_step, request, .. } = sample;
                say(Out::Sampled(v1::Sampled { next_step, paths, error: String::new(), request })).await;
            }
            In::Offer(offer) => {
                let state_hash = format!("state after {}", offer.next_step);
                say(Out::Offered(v1::Offered { transfer: offer.transfer, state_hash })).await;
            }
            In::Fetch(fetch) => {
                next_step = fetch.next_step;
                let v1::Fetch { transfer, state_hash, .. } = fetch;
                say(Out::CaughtUp(v1::CaughtUp { transfer, state_hash })).await;
            }
            In::NcclId(_) => panic!("it said that it cannot use NCCL"),
            In::Finish(_) | In::Refuse(_) => break,
        }
    }
    applied
}

/// Serves a run with fake workers; stops it after `stop_after` commits when asked to.
async fn perform(
    run: PreparedRun,
    fates: &[Fate],
    stop_after: Option<usize>,
) -> (Result<Outcome, RunError>, Vec<RunEvent>, Vec<Vec<u64>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let (events, mut watched) = mpsc::unbounded_channel();
    let (stop, stopped) = watch::channel(false);
    let watcher = tokio::spawn(async move {
        let (mut all, mut commits) = (Vec::new(), 0);
        while let Some(event) = watched.recv().await {
            commits += usize::from(matches!(event, RunEvent::Stepped { .. }));
            if Some(commits) == stop_after {
                let _ = stop.send(true);
            }
            all.push(event);
        }
        all
    });
    let workers: Vec<_> = fates.iter().map(|fate| tokio::spawn(worker(url.clone(), *fate))).collect();
    let outcome =
        tokio::time::timeout(DEADLINE, serve(listener, run, fates.len() as u32, events, stopped)).await.unwrap();
    let mut applied = Vec::new();
    for worker in workers {
        applied.push(tokio::time::timeout(DEADLINE, worker).await.unwrap().unwrap());
    }
    (outcome, watcher.await.unwrap(), applied)
}

fn stepped(events: &[RunEvent]) -> Vec<u64> {
    let step = |event: &RunEvent| if let RunEvent::Stepped { step, .. } = event { Some(*step) } else { None };
    events.iter().filter_map(step).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_is_committed_saved_and_verified() {
    let fixture = Fixture::new();
    // 5 + 3 = 8 occurrences an epoch in steps of 4; odd micro-batches may make it three steps.
    let run = fixture.create(&[]).unwrap();
    let total = run.total_steps();
    let (outcome, events, applied) = perform(run, &[Fate::Lives, Fate::Lives], None).await;
    assert_eq!(outcome.unwrap(), Outcome::Finished { next_step: total });
    let all: Vec<_> = (0..total).collect();
    assert_eq!((stepped(&events), applied), (all.clone(), vec![all.clone(), all]));
    let drawn =
        |event: &RunEvent| if let RunEvent::SamplesDrawn { paths, .. } = event { Some(paths.len()) } else { None };
    assert_eq!(events.iter().filter_map(drawn).collect::<Vec<_>>(), [3, 3], "at the start and at the end");

    let verified = verify(&fixture.run_folder()).unwrap();
    assert_eq!((verified.committed_steps, verified.complete_epochs, verified.positions), (total, 3, 24));
    assert!(verified.checkpoints.contains(&total) && verified.checkpoints.len() <= 3, "{verified:?}");
    let schedule = std::fs::read_to_string(fixture.run_folder().join("logs/ep2_batch_schedule.txt")).unwrap();
    assert_eq!(schedule.lines().count(), 8);
    let report = report(&fixture.run_folder(), &ReportOptions::default()).unwrap();
    let more = report.folders.iter().find(|folder| folder.path == "more").unwrap();
    assert_eq!((report.total.exposures.delivered, report.total.exposures.intended), (24, Some(24)));
    assert_eq!((more.exposures.delivered, more.exposures.intended, more.loss.mean), (9, Some(9), Some(0.5)));
    assert_eq!((report.run.complete_epochs, report.run.total_steps, report.notes), (3, Some(total), vec![]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_worker_changes_nothing_in_the_ledger() {
    let fixture = Fixture::new();
    // A slot for each: a third worker of two slots would wait as a spare, and miss the first step.
    let run = fixture.create(&[("step.slots", "3")]).unwrap();
    let total = run.total_steps();
    let fates = [Fate::DiesAtPlan(1), Fate::Lives, Fate::DiesAtCommit(2)];
    let (outcome, events, applied) = perform(run, &fates, None).await;
    assert_eq!(outcome.unwrap(), Outcome::Finished { next_step: total });
    assert_eq!(stepped(&events), (0..total).collect::<Vec<_>>());
    assert_eq!(applied[1], (0..total).collect::<Vec<_>>());
    assert_eq!(events.iter().filter(|event| matches!(event, RunEvent::WorkerLost { .. })).count(), 2);
    assert_eq!(verify(&fixture.run_folder()).unwrap().committed_steps, total);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_run_resumes_where_it_was_saved() {
    let fixture = Fixture::new();
    let run = fixture.create(&[("cluster.plan_ahead", "1")]).unwrap();
    let total = run.total_steps();
    let (outcome, ..) = perform(run, &[Fate::Lives], Some(3)).await;
    let Outcome::Interrupted { next_step, checkpoint: Some(checkpoint) } = outcome.unwrap() else { panic!() };
    assert!((3..total).contains(&next_step) && checkpoint.ends_with(format!("checkpoints/step-{next_step:06}")));

    let run = fixture.resume(&[]).unwrap();
    assert_eq!(run.next_step(), next_step);
    let (outcome, events, _) = perform(run, &[Fate::Lives, Fate::Lives], None).await;
    assert_eq!(outcome.unwrap(), Outcome::Finished { next_step: total });
    assert_eq!(stepped(&events), (next_step..total).collect::<Vec<_>>());
    assert_eq!(verify(&fixture.run_folder()).unwrap().rollbacks, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_whose_workers_all_died_goes_back_to_its_checkpoint() {
    let fixture = Fixture::new();
    let run = fixture.create(&[]).unwrap();
    let total = run.total_steps();
    let (outcome, ..) = perform(run, &[Fate::DiesAtCommit(4)], None).await;
    let error = outcome.unwrap_err();
    assert!(error.to_string().contains("no worker is left after 5 steps"), "{error}");

    let run = fixture.resume(&[]).unwrap();
    assert_eq!(run.next_step(), 4);
    let (outcome, ..) = perform(run, &[Fate::Lives], None).await;
    assert_eq!(outcome.unwrap(), Outcome::Finished { next_step: total });
    let report = verify(&fixture.run_folder()).unwrap();
    assert_eq!((report.rollbacks, report.committed_steps), (vec![(5, 4)], total));
}

#[tokio::test(flavor = "multi_thread")]
async fn verify_names_the_first_violation() {
    let fixture = Fixture::new();
    perform(fixture.create(&[]).unwrap(), &[Fate::Lives], None).await.0.unwrap();
    let ledger = fixture.run_folder().join(LEDGER_FILE);
    let whole = std::fs::read(&ledger).unwrap();
    let damage = |sql: &str| {
        for suffix in ["", "-wal", "-shm"] {
            let _ = std::fs::remove_file(ledger.with_file_name(format!("{LEDGER_FILE}{suffix}")));
        }
        std::fs::write(&ledger, &whole).unwrap();
        rusqlite::Connection::open(&ledger).unwrap().execute_batch(sql).unwrap();
        match verify(&fixture.run_folder()) {
            Err(VerifyError::Violation(what)) => what,
            other => panic!("{sql}: {other:?}"),
        }
    };
    for (sql, what) in [
        ("DELETE FROM commits WHERE step = 1", "step 1 is missing"),
        (
            "DELETE FROM losses WHERE step = 2 AND position = (SELECT MIN(position) FROM losses WHERE step = 2)",
            "step 2: the schedule has",
        ),
        ("UPDATE losses SET sample = 6 - sample WHERE step = 0", "step 0: the schedule has"),
        ("UPDATE losses SET loss = 9 WHERE step = 3", "step 3: its losses were altered"),
        ("UPDATE commits SET generation = 9 WHERE step = 1", "step 1: the chain of commits is broken"),
        ("UPDATE epochs SET schedule_hash = 'x' WHERE epoch = 1", "epoch 1: the schedule's hash is"),
        ("DELETE FROM epochs WHERE epoch = 1", "epoch 1: the schedule's hash is"),
        ("UPDATE commits SET gradient_norm = 2 WHERE step = 1", "step 1: the chain of commits is broken"),
        ("UPDATE commits SET gradient_hash = zeroblob(32) WHERE step = 2", "step 2: the chain of commits is broken"),
        ("UPDATE commits SET chain = zeroblob(16) WHERE step = 2", "step 2: the chain of commits is broken"),
        ("UPDATE commits SET losses_hash = zeroblob(16) WHERE step = 2", "step 2: its losses were altered"),
        ("UPDATE commits SET epoch = 2 WHERE step = 0", "step 0 belongs to epoch 0, the ledger says 2"),
        ("UPDATE commits SET positions = 9 WHERE step = 1", "step 1: the commit's range of positions"),
        ("UPDATE losses SET weight = 7 WHERE step = 1", "step 1: its losses were altered"),
        ("UPDATE losses SET skipped = 'x' WHERE step = 1", "step 1: its losses were altered"),
        ("UPDATE losses SET copy = copy + 1 WHERE step = 1", "step 1: the schedule has"),
        (
            "INSERT INTO losses SELECT step, position + 90, sample, copy, timestep, loss, weight, skipped FROM losses \
          WHERE step = 1",
            "step 1: the schedule has nothing",
        ),
        (
            "INSERT INTO losses SELECT 99, position, sample, copy, timestep, loss, weight, skipped FROM losses \
          WHERE step = 1",
            "step 99 has a row in `losses` and is not among",
        ),
        ("UPDATE commits SET step = -1 WHERE step = 1", "step 1 is missing"),
        ("DELETE FROM members", "step 0: generation 1 has no members on record"),
        ("DELETE FROM losses WHERE step > 1; DELETE FROM commits WHERE step > 1", "is after the last committed step"),
        ("UPDATE checkpoints SET params_hash = 'x'", "its parameters are not those that the ledger names"),
        ("UPDATE checkpoints SET path = 'checkpoints/step-999999'", "checkpoints/step-999999 is damaged: cannot read"),
    ] {
        let found = damage(sql);
        assert!(found.contains(what), "{sql}: {found}");
    }
}

/// Steps of the checkpoints that are on disk, by their names.
fn on_disk(fixture: &Fixture) -> Vec<u64> {
    let entries = std::fs::read_dir(fixture.run_folder().join("checkpoints")).unwrap();
    let mut steps: Vec<u64> = entries
        .filter_map(|entry| ballast_common::checkpoint::steps_of_name(entry.unwrap().file_name().to_str().unwrap()))
        .collect();
    steps.sort_unstable();
    steps
}

/// Every checkpoint stays.
const KEEP_ALL: (&str, &str) = ("checkpoint.keep_last", "99");

#[tokio::test(flavor = "multi_thread")]
async fn damaged_checkpoints_are_passed_over_by_name_and_the_rollback_is_on_record() {
    let fixture = Fixture::new();
    let often = [KEEP_ALL, ("run.epochs", "6")];
    perform(fixture.create(&often).unwrap(), &[Fate::Lives], None).await.0.unwrap();
    let steps = on_disk(&fixture);
    let [_, good, wrong, missing, cut, newest] = steps[..] else { panic!("{steps:?}") };
    let folder = |step: u64| fixture.run_folder().join(format!("checkpoints/step-{step:06}"));
    // A byte flipped, a file cut short, a file gone, and one that is whole and not what the ledger says.
    let mut bytes = std::fs::read(folder(newest).join("weights")).unwrap();
    bytes[3] ^= 1;
    std::fs::write(folder(newest).join("weights"), bytes).unwrap();
    let bytes = std::fs::read(folder(cut).join("weights")).unwrap();
    std::fs::write(folder(cut).join("weights"), &bytes[..3]).unwrap();
    std::fs::remove_file(folder(missing).join("weights")).unwrap();
    let state = folder(wrong).join(STATE_FILE);
    let text = std::fs::read_to_string(&state).unwrap();
    std::fs::write(&state, text.replace(&format!("after {wrong}"), "other bits")).unwrap();
    assert!(matches!(verify(&fixture.run_folder()), Err(VerifyError::Violation(_))));

    let run = fixture.resume(&often).unwrap();
    let total = run.total_steps();
    assert_eq!(run.next_step(), good);
    let ledger = rusqlite::Connection::open(fixture.run_folder().join(LEDGER_FILE)).unwrap();
    let reason: String = ledger.query_row("SELECT reason FROM rollbacks", [], |row| row.get(0)).unwrap();
    for part in [
        format!("resumed from checkpoints/step-{good:06}"),
        format!(
            "passed over checkpoints/step-{newest:06}: {} is damaged: its hash",
            folder(newest).join("weights").display()
        ),
        format!("passed over checkpoints/step-{cut:06}: "),
        "it has 3 bytes".to_owned(),
        format!("cannot read {}", folder(missing).join("weights").display()),
        format!("passed over checkpoints/step-{wrong:06}: its parameters are not those that the ledger names"),
    ] {
        assert!(reason.contains(&part), "{part}\n{reason}");
    }
    drop(ledger);
    let (outcome, ..) = perform(run, &[Fate::Lives], None).await;
    assert_eq!(outcome.unwrap(), Outcome::Finished { next_step: total });
    let report = verify(&fixture.run_folder()).unwrap();
    assert_eq!((report.rollbacks, report.checkpoints, report.strangers), (vec![(total, good)], steps, vec![]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_that_was_finished_without_the_coordinator_is_taken_up_if_it_belongs_to_the_ledger() {
    let fixture = Fixture::new();
    perform(fixture.create(&[KEEP_ALL]).unwrap(), &[Fate::Lives], None).await.0.unwrap();
    let (total, forget) = (*on_disk(&fixture).last().unwrap(), "DELETE FROM checkpoints WHERE next_step > 2");
    let execute = |sql: &str| {
        rusqlite::Connection::open(fixture.run_folder().join(LEDGER_FILE)).unwrap().execute_batch(sql).unwrap();
    };
    execute(forget);
    assert!(!verify(&fixture.run_folder()).unwrap().strangers.is_empty());
    assert_eq!(fixture.resume(&[KEEP_ALL]).unwrap().next_step(), total);
    assert_eq!(verify(&fixture.run_folder()).unwrap().checkpoints, [2, total]);
    // The same files beside a ledger with other commits: nobody may go on from them.
    execute(forget);
    let state = fixture.run_folder().join(format!("checkpoints/step-{total:06}")).join(STATE_FILE);
    let text = std::fs::read_to_string(&state).unwrap();
    let (before, chain) = text.split_once("\"chain\":\"").unwrap();
    std::fs::write(&state, format!("{before}\"chain\":\"{}{}", "0".repeat(32), &chain[32..])).unwrap();
    let next = fixture.resume(&[KEEP_ALL]).unwrap().next_step();
    assert!(next < total, "{next}");
    // One that the ledger does name is a violation then.
    let state = fixture.run_folder().join("checkpoints/step-000002").join(STATE_FILE);
    let text = std::fs::read_to_string(&state).unwrap();
    let (before, chain) = text.split_once("\"chain\":\"").unwrap();
    std::fs::write(&state, format!("{before}\"chain\":\"{}{}", "0".repeat(32), &chain[32..])).unwrap();
    let Err(VerifyError::Violation(what)) = verify(&fixture.run_folder()) else { panic!("it is sound") };
    assert_eq!(what, "checkpoints/step-000002 is damaged: it belongs to other commits than the ledger's");
}

#[tokio::test(flavor = "multi_thread")]
async fn old_checkpoints_go_but_for_those_that_are_kept_or_read() {
    let fixture = Fixture::new();
    let keep = [
        ("run.epochs", "9"),
        ("checkpoint.every_steps", "3"),
        ("checkpoint.keep_last", "1"),
        ("checkpoint.keep_every_steps", "6"),
    ];
    let run = fixture.create(&keep).unwrap();
    let total = run.total_steps();
    perform(run, &[Fate::Lives], None).await.0.unwrap();
    let mut kept: Vec<u64> = (1..=total).filter(|step| step % 6 == 0 || *step == total).collect();
    assert_eq!(verify(&fixture.run_folder()).unwrap().checkpoints, kept);
    assert_eq!(on_disk(&fixture), kept);

    // Now fewer are wanted; one that is being read stays for as long.
    let folder = |step: u64| fixture.run_folder().join(format!("checkpoints/step-{step:06}"));
    let reading = ballast_common::checkpoint::Hold::take(&folder(6));
    let keep = &keep[..3];
    perform(fixture.resume(keep).unwrap(), &[Fate::Lives], None).await.0.unwrap();
    kept.retain(|step| *step == 6 || *step == total);
    assert_eq!(on_disk(&fixture), kept);
    drop(reading);
    perform(fixture.resume(keep).unwrap(), &[Fate::Lives], None).await.0.unwrap();
    assert_eq!((on_disk(&fixture), verify(&fixture.run_folder()).unwrap().checkpoints), (vec![total], vec![total]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_with_other_data_is_refused_with_what_differs() {
    let fixture = Fixture::new();
    let run = fixture.create(&[("cluster.join_timeout", "2s")]).unwrap();
    let total = run.total_steps();
    let (outcome, events, applied) = perform(run, &[Fate::OtherData, Fate::Lives], None).await;
    assert_eq!(outcome.unwrap(), Outcome::Finished { next_step: total });
    assert_eq!((applied[0].len(), applied[1].len() as u64), (0, total));
    let reason = |event: &RunEvent| match event {
        RunEvent::WorkerLost { reason, .. } => Some(reason.clone()),
        _ => None,
    };
    let reasons: Vec<String> = events.iter().filter_map(reason).collect();
    assert!(
        reasons.len() == 1 && reasons[0].contains("its data in ") && reasons[0].contains("fingerprint x"),
        "{reasons:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_clock_asks_for_checkpoints_too() {
    let fixture = Fixture::new();
    // So short that the first look at the clock, a millisecond after the start, asks for one.
    let often = [KEEP_ALL, ("checkpoint.every_steps", "0"), ("checkpoint.every_minutes", "1e-7")];
    perform(fixture.create(&often).unwrap(), &[Fate::Lives], None).await.0.unwrap();
    assert!(on_disk(&fixture).len() > 1, "only the last one is there: {:?}", on_disk(&fixture));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_that_cannot_be_written_stops_nothing() {
    let fixture = Fixture::new();
    let run = fixture.create(&[KEEP_ALL]).unwrap();
    let total = run.total_steps();
    let (outcome, events, _) = perform(run, &[Fate::CannotSave], None).await;
    assert_eq!(outcome.unwrap(), Outcome::Finished { next_step: total });
    let saved = events.iter().filter(|event| matches!(event, RunEvent::CheckpointSaved { .. })).count();
    assert_eq!((saved, on_disk(&fixture)), (1, vec![total]), "the last one alone");

    // With a second worker whose disk has room, that one writes.
    let fixture = Fixture::new();
    let run = fixture.create(&[KEEP_ALL]).unwrap();
    perform(run, &[Fate::CannotSave, Fate::Lives], None).await.0.unwrap();
    assert!(on_disk(&fixture).contains(&4), "{:?}", on_disk(&fixture));
}

#[test]
fn what_is_wrong_beforehand_is_said_before_anything_is_written() {
    let fixture = Fixture::new();
    let nothing_written = || !fixture.run_folder().exists();
    let error = |overrides: &[(&str, &str)]| fixture.create(overrides).map(drop).unwrap_err();
    let missing = error(&[("model.path", "/nowhere")]);
    assert!(missing.to_string().contains("no model in /nowhere") && missing.exit_code() == 2 && nothing_written());
    assert!(matches!(fixture.resume(&[]).map(drop), Err(RunError::NoRun { .. })));

    fixture.create(&[]).unwrap();
    assert!(matches!(error(&[]), RunError::RunExists { .. }));
    let changed = fixture.resume(&[("optimizer.lr", "0.5"), ("run.max_steps", "2")]).map(drop).unwrap_err();
    assert!(changed.to_string().contains("lr = 0.5"), "{changed}");
    std::fs::write(fixture.folder.path().join("data/more/multiply.txt"), "2").unwrap();
    let changed = fixture.resume(&[]).map(drop).unwrap_err();
    assert!(matches!(changed, RunError::DataChanged { .. }), "{changed}");
}
