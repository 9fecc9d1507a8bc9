//! What is wrong is said at once, with what, where and what to do; nothing is left behind.

use std::net::TcpListener;

use crate::lab::Lab;

#[test]
fn all_wrong_files_are_named_before_anything_is_written() {
    let lab = Lab::new();
    lab.write("data/boats/multiply.txt", "2,5");
    lab.write("data/keep/loss_scale.txt", "much");
    for command in [["train", "config.toml"], ["plan", "config.toml"]] {
        lab.run(&command).expect(2).says(&["error: ", "boats/multiply.txt", "2,5", "keep/loss_scale.txt", "much"]);
    }
    assert!(lab.is_untouched());
}

#[test]
fn a_missing_model_is_named_before_anything_is_written() {
    let lab = Lab::without_model();
    lab.run(&["train", "config.toml"]).expect(2).says(&["error: there is no model at", "/model", "hint: "]);
    assert!(lab.is_untouched());
}

#[test]
fn a_broken_model_is_an_error_of_the_start_and_not_a_timeout() {
    let lab = Lab::new();
    lab.write("model/unet/diffusion_pytorch_model.safetensors", "no tensors");
    let failed = lab.start_train("run", &["--workers", "2"]).finish().expect(1);
    let failed = failed.says(&["error: ", "unet/diffusion_pytorch_model.safetensors"]);
    assert!(!failed.stderr.contains("panicked"), "{}", failed.stderr);
    assert!(!lab.run_of("run").folder.join("final.safetensors").exists());
}

#[test]
fn an_unknown_key_is_refused_with_the_nearest_one() {
    let lab = Lab::new();
    lab.run(&["train", "config.toml", "--set", "optimizer.lrr=1"]).expect(2).says(&["optimizer.lrr", "optimizer.lr`"]);
    lab.run(&["train", "config.toml", "--set", "optimizer.lr"]).expect(2).says(&["KEY=VALUE"]);
    lab.run(&["train", "absent.toml"]).expect(2).says(&["absent.toml"]);
    lab.run(&["fly"]).expect(2);
    assert!(lab.is_untouched());
}

#[test]
fn a_picture_that_cannot_be_read_is_named_and_the_others_are_trained() {
    let lab = Lab::new();
    lab.write("data/cats/broken.png", "this is no picture");
    let whole = std::fs::read(lab.path("data/cats/picture_1.png")).unwrap();
    lab.write("data/cats/truncated.png", &whole[..whole.len() / 2]);
    let finished = lab.start_train("run", &["--workers", "2", "--set", "run.epochs=1"]).finish().expect(0);
    finished.says(&["broken.png", "truncated.png"]);
    let skipped = lab
        .run_of("run")
        .rows("SELECT DISTINCT path, weight FROM losses JOIN samples ON id = sample WHERE skipped <> ''");
    assert!(skipped.len() == 1 && skipped[0].ends_with("Real(0.0)"), "{skipped:?}");
    lab.run(&["verify", "runs/run"]).expect(0);
}

#[test]
fn a_port_in_use_is_named() {
    let lab = Lab::new();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    lab.run(&["coordinator", "config.toml", "--listen", &address])
        .expect(1)
        .says(&["error: ", &address, "in use", "hint: "]);
    assert!(lab.is_untouched());
}

#[test]
fn other_machines_are_let_in_only_when_it_is_said_aloud() {
    let lab = Lab::new();
    lab.run(&["coordinator", "config.toml", "--listen", "0.0.0.0:0"]).expect(2).says(&[
        "0.0.0.0",
        "hint: ",
        "--insecure",
    ]);
    lab.run(&["train", "config.toml", "--set", "cluster.listen=0.0.0.0:0"]).expect(2).says(&["0.0.0.0", "hint: "]);
    lab.run(&["worker", "--coordinator", "http://192.0.2.1:4600"]).expect(2).says(&["192.0.2.1", "--insecure"]);
    assert!(lab.is_untouched());
}

#[test]
fn a_run_is_never_overwritten() {
    let lab = Lab::new();
    lab.train("run", &["--workers", "1", "--max-steps", "1"]);
    lab.start_train("run", &["--workers", "1"]).finish().expect(2).says(&["runs/run", "--resume"]);
    lab.start_train("other", &["--resume"]).finish().expect(2).says(&["other"]);
}

#[test]
fn a_resume_refuses_other_data_and_other_learning() {
    let lab = Lab::new();
    lab.train("run", &["--workers", "1", "--max-steps", "1"]);
    let resume = |args: &[&str]| lab.start_train("run", &[&["--resume"], args].concat()).finish();
    resume(&["--set", "optimizer.lr=0.5"]).expect(2).says(&["lr"]);
    lab.write("data/cats/picture_1.txt", "another caption");
    resume(&[]).expect(2).says(&["data"]);
}
