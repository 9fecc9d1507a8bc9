//! A data root, and workers that speak the protocol but compute nothing.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ballast_common::checkpoint::{CheckpointState, FORMAT_VERSION, STATE_FILE, record};
use ballast_common::config::RunConfig;
use ballast_common::dataset::Dataset;
use ballast_coordinator::{Outcome, PreparedRun, RunError, RunEvent, serve};
use ballast_proto::v1::coordinator_client::CoordinatorClient;
use ballast_proto::v1::session_request::Message as Out;
use ballast_proto::v1::session_response::Message as In;
use ballast_proto::{PROTOCOL_VERSION, v1};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;

const DEADLINE: Duration = Duration::from_secs(60);

pub(crate) struct Fixture {
    pub(crate) folder: tempfile::TempDir,
}

impl Fixture {
    /// Two folders: five pictures used once, two used 1.5 times. Steps of 2 slots × 2.
    pub(crate) fn new() -> Self {
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

    pub(crate) fn config(&self, overrides: &[(&str, &str)]) -> RunConfig {
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

    pub(crate) fn dataset(&self, config: &RunConfig) -> Dataset {
        Dataset::scan(&config.data).unwrap()
    }

    pub(crate) fn run_folder(&self) -> PathBuf {
        self.folder.path().join("runs/test")
    }

    pub(crate) fn create(&self, overrides: &[(&str, &str)]) -> Result<PreparedRun, RunError> {
        let config = self.config(overrides);
        let dataset = self.dataset(&config);
        PreparedRun::create(config, dataset, self.run_folder())
    }

    pub(crate) fn resume(&self, overrides: &[(&str, &str)]) -> Result<PreparedRun, RunError> {
        let config = self.config(overrides);
        let dataset = self.dataset(&config);
        PreparedRun::resume(config, dataset, self.run_folder())
    }
}

/// When a fake worker drops its connection.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Fate {
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
pub(crate) async fn perform(
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
