#!/usr/bin/env python3
"""Runs `sd-step` and cpu_step.py in alternating pairs and prints medians and ratios as Markdown tables.

usage: race_cpu_step.py SD_STEP [--python PYTHON] [--pairs N] [--ops CPU_OPS] [-- options of both, --model sd15 --batch 1 ...]

SD_STEP is target/release/sd-step; with --ops target/release/cpu-ops the single operations are compared as well. PYTHON is one
that has requirements.txt installed. The threads are the machine's cores for both.
"""
import argparse
import json
import os
import pathlib
import subprocess
import sys

PEER = pathlib.Path(__file__).with_name("cpu_step.py")
PARTS = [("wall_s_median", "wall, s"), ("cpu_s_median", "CPU, s"), ("forward_cpu_s", "CPU of forward, s"),
         ("backward_cpu_s", "CPU of backward, s"), ("update_cpu_s", "CPU of clipping and AdamW, s"),
         ("peak_rss_gb", "peak memory, GiB")]


def median(values):
    return sorted(values)[len(values) // 2]


def run(command, threads):
    environment = dict(os.environ, RAYON_NUM_THREADS=str(threads), OMP_NUM_THREADS=str(threads))
    print("$ " + " ".join(map(str, command)), file=sys.stderr, flush=True)
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True)
    sys.stderr.write(done.stdout)
    if done.returncode != 0:
        sys.exit(f"{command[0]} ended with {done.returncode}")
    return done.stdout


def last_json(text):
    return json.loads([line for line in text.splitlines() if line.startswith("{")][-1])


def table_rows(text):
    """Name to the numbers of its row."""
    rows = [line.strip("| \n").split(" | ") for line in text.splitlines() if line.startswith("| ")][1:]
    return {row[0]: [float(cell) for cell in row[1:3]] for row in rows}


def main():
    argv = sys.argv[1:]
    split = argv.index("--") if "--" in argv else len(argv)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sd_step")
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--ops")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    args = parser.parse_args(argv[:split])
    options = argv[split + 1:] or ["--model", "sd15", "--batch", "1", "--steps", "2"]
    peer = [args.python, str(PEER)]
    if args.ops:
        ours = table_rows(run([args.ops], args.threads))
        theirs = table_rows(run([*peer, "--ops", "--threads", str(args.threads)], args.threads))
        print("| operation, CPU ms | ballast forward | PyTorch | ratio | ballast backward | PyTorch | ratio |")
        print("|---|---|---|---|---|---|---|")
        for name in [name for name in ours if name in theirs]:
            pairs = zip(ours[name], theirs[name])
            print(f"| {name} | " + " | ".join(f"{a:.2f} | {b:.2f} | {a / b:.2f}" for a, b in pairs) + " |")
        print(flush=True)
    results = {"ballast": [], "pytorch": []}
    for pair in range(args.pairs):
        order = ["ballast", "pytorch"] if pair % 2 == 0 else ["pytorch", "ballast"]
        for program in order:
            command = [args.sd_step, *options] if program == "ballast" else \
                [*peer, *options, "--threads", str(args.threads)]
            results[program].append(last_json(run(command, args.threads)))
    if args.pairs:
        print(f"`{' '.join(options)}`, {args.threads} threads, medians of {args.pairs} alternating pairs:\n")
        print("| | ballast | PyTorch | ratio |")
        print("|---|---|---|---|")
        for key, name in PARTS:
            ours, theirs = (median([result[key] for result in results[p]]) for p in ("ballast", "pytorch"))
            ratio = median([a[key] / b[key] for a, b in zip(results["ballast"], results["pytorch"])])
            print(f"| {name} | {ours:.2f} | {theirs:.2f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
