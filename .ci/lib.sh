# What the tests of the deployments share: a scratch folder, processes that end with the script, a tiny run to train.
# Sourced by bash scripts. Nothing is started that does not listen on loopback or in a network of its own, nothing is
# ended but by its process id.
# shellcheck shell=bash

set -euo pipefail

repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
ballast=${BALLAST_BINARY:-$repository/target/release/ballast}
scratch=$(mktemp -d)
chmod 755 "$scratch"
mkdir "$scratch/logs"
started=()

say() { echo "$(basename "$0"): $*" >&2; }

die() {
    say "$*"
    exit 1
}

# Starts the program $2… in the background, with its output in logs/$1.log, and has it ended with the script. Its
# process id is left in $pid.
start() {
    local name=$1
    shift
    "$@" >"$scratch/logs/$name.log" 2>&1 </dev/null &
    pid=$!
    started+=("$pid")
}

# Waits until the command $2… succeeds, at most $1 seconds.
wait_until() {
    local deadline=$((SECONDS + $1))
    shift
    until "$@" >/dev/null 2>&1; do
        ((SECONDS < deadline)) || return 1
        sleep 0.3
    done
}

# Succeeds when the process $1 has ended.
ended() { ! kill -0 "$1" 2>/dev/null; }

# Ends what was started, the last first, and shows the logs of a test that failed. A script that has more to end
# defines `before_clean_up`.
clean_up() {
    local code=$? index log
    trap - EXIT
    ! declare -F before_clean_up >/dev/null || before_clean_up || true
    for ((index = ${#started[@]} - 1; index >= 0; index--)); do
        ended "${started[index]}" && continue
        kill -TERM "${started[index]}"
        wait_until 10 ended "${started[index]}" || kill -KILL "${started[index]}"
    done
    if ((code != 0)); then
        for log in "$scratch"/logs/*.log; do
            [[ ! -s $log ]] || printf '\n--- the end of %s\n%s\n' "$(basename "$log")" "$(tail -n 15 "$log")" >&2
        done
    fi
    rm -rf "$scratch"
    exit "$code"
}
trap clean_up EXIT
trap 'exit 130' INT TERM

# Installs the Debian packages $2… unless the program $1 is there. A package's service is not started: each test runs
# its own, with its own configuration.
need() {
    local program=$1 guard=/usr/sbin/policy-rc.d guarded=no code=0
    shift
    ! PATH=$PATH:/usr/sbin:/sbin command -v "$program" >/dev/null || return 0
    ((EUID == 0)) || die "$program is missing: as root, apt-get install $*"
    say "installing $*"
    if [[ ! -e $guard ]]; then
        printf '#!/bin/sh\nexit 101\n' >$guard
        chmod +x $guard
        guarded=yes
    fi
    export DEBIAN_FRONTEND=noninteractive
    { apt-get update -qq && apt-get install -y -qq --no-install-recommends "$@"; } >"$scratch/logs/apt.log" 2>&1 || code=$?
    [[ $guarded == no ]] || rm $guard
    ((code == 0)) || die "cannot install $*"
}

# Writes a model, pictures and a config that train in seconds into $1, and trains them here with one worker: what every
# other way to start the run must arrive at, bit by bit.
prepare_tiny_run() {
    [[ -x $ballast ]] || die "$ballast is missing: cargo build --release --locked"
    "$repository/.ci/tiny-run" "$1" "$ballast"
    say "training on this machine, one worker"
    start local "$ballast" train "$1/run.toml" --workers 1 --device cpu --out "$1/runs" --name local
    wait_until 300 ended "$pid" || die "the run on this machine takes too long"
    wait "$pid" || die "the run on this machine failed"
}

# Checks the run folder $1 of two workers, whose coordinator wrote the log $2, against the run on this machine, $3.
check_run() {
    grep -q 'training .*with 2 workers' "$2" || die "the run did not have two workers"
    [[ -s $1/final.safetensors ]] || die "$1/final.safetensors is missing"
    "$ballast" verify "$1" || die "ballast verify $1 failed"
    cmp "$1/final.safetensors" "$3/final.safetensors" || die "the model differs from the one trained on this machine"
    say "the ledger is clean, and the model is the one trained on this machine, bit by bit"
}

# Waits until the coordinator that writes the log $1 has dealt a first step to two workers.
wait_for_training() {
    wait_until 60 grep -q 'training .*with 2 workers' "$1" || die "the workers do not start"
    wait_until 60 grep -q 'step 1/' "$1" || die "there is no first step"
}

# Kills the last of the workers that the log $1 names by their process ids.
kill_a_worker() {
    local worker
    worker=$(sed -n 's/^.*worker [0-9]* joined.*process \([0-9]*\).*/\1/p' "$1" | tail -n 1)
    kill -KILL "$worker" || die "no worker to kill: the run was over too early"
    say "killed worker process $worker in the middle of the run"
}
