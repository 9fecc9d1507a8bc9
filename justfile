# `just` lists the recipes. CI (`.ci/run`) runs the same commands and, after them, the deployments.

_default:
    @just --list

# format the code
fmt:
    cargo fmt --all

# formatting, clippy, docs
lint:
    cargo fmt --all --check
    cargo clippy --release --locked --workspace --all-targets -- -D warnings
    RUSTDOCFLAGS=-Dwarnings cargo doc --release --locked --no-deps --workspace

# every test that needs nothing else installed
test:
    cargo test --release --locked --workspace

# licences, banned crates, sources
deny:
    cargo deny --locked check licenses bans sources

# what CI checks, without the deployments
check: lint test deny

# train on the example pictures (about four minutes on two cores)
demo:
    cargo run --release --locked -- train examples/quickstart.toml

# all of CI, with Slurm and sshd on loopback (as root, on Debian)
ci:
    .ci/run
