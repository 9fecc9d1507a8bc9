#!/usr/bin/env python3
"""What the stages of tests/gpu/run make of what programs print: pure functions, tested by test_report.py.

As a program: tests/gpu/report.py REPORT.json ... joins the reports of several calls (a later one replaces a stage of an
earlier one, races are joined setting by setting) and prints the joined report and its tables.
"""
import json
import re
import sys

CLASSES = [("attention", r"attention|flash"), ("communication", r"nccl"),
           ("convolution", r"conv|im2col|implicit|wgrad|dgrad"),
           ("norm", r"group_?norm|layer_?norm|norm_chunks|norm_finish"), ("GEGLU", r"geglu"),
           ("optimizer", r"adam|multi_tensor"), ("matrix product", r"matmul|gemm|cutlass|mma|cublas"),
           ("reduction", r"reduce|sum"), ("copy and cast", r"cast|copy|permute|into_contiguous|memcpy|memset|cat\b|slice")]
AIMS = [("40 images/s (an A100 with MosaicML's stack)", 40.0), ("110 images/s", 110.0),
        ("137 images/s (class of NVIDIA's MLPerf v4.1 record)", 137.0)]


def json_lines(text):
    """The JSON objects that a program printed, a line each; whatever else stands there is passed over."""
    found = []
    for line in text.splitlines():
        if line.startswith("{"):
            try:
                found.append(json.loads(line))
            except ValueError:
                pass  # cut off where the program was killed
    return found


def class_of(kernel):
    return next((label for label, pattern in CLASSES if re.search(pattern, kernel.lower())), "element by element and other")


def kernel_classes(kernels):
    """Milliseconds, share and launches by class, from [{"name", "ms", "launches"}], the longest first."""
    total = sum(kernel["ms"] for kernel in kernels) or 1.0
    classes = {}
    for kernel in kernels:
        sums = classes.setdefault(class_of(kernel["name"]), {"ms": 0.0, "launches": 0.0, "kernels": 0})
        sums["ms"] += kernel["ms"]
        sums["launches"] += kernel["launches"]
        sums["kernels"] += 1
    ordered = sorted(classes.items(), key=lambda item: -item[1]["ms"])
    return {label: {"ms": round(sums["ms"], 3), "share": round(sums["ms"] / total, 4),
                    "launches": round(sums["launches"], 1), "kernels": sums["kernels"]} for label, sums in ordered}


def nsys_kernels(table, steps):
    """Kernels from the CSV of `nsys stats --report cuda_gpu_kern_sum`: names may hold commas, so the header counts."""
    lines = [line for line in table.splitlines() if "," in line]
    start = next((i for i, line in enumerate(lines) if "Total Time (ns)" in line), None)
    if start is None:
        raise ValueError("nsys printed no table of kernels")
    header = lines[start].split(",")
    time, count = header.index("Total Time (ns)"), header.index("Instances")
    kernels = []
    for line in lines[start + 1:]:
        fields = line.split(",", len(header) - 1)
        if len(fields) == len(header) and re.fullmatch(r"[\d.]+", fields[time].strip()):
            kernels.append({"name": fields[-1].strip('" '), "ms": float(fields[time]) / 1e6 / steps,
                            "launches": float(fields[count]) / steps})
    return kernels


def field(line, name):
    """The number of a field of a log line, or none."""
    found = re.search(rf"\b{name}=(-?[\d.]+(?:e-?\d+)?)", line)
    return float(found.group(1)) if found else None


def device_memory(log):
    """(step, bytes in use, bytes reserved) from a worker's lines in ballast.log, in order."""
    lines = [line for line in log.splitlines() if "device memory" in line]
    return [(int(field(line, "step")), field(line, "in_use_bytes"), field(line, "reserved_bytes")) for line in lines]


def first_step_seconds(log):
    """Seconds from the device thread's start to its first gradient."""
    line = next((line for line in log.splitlines() if "first step computed" in line), "")
    return field(line, "since_start_seconds")


def growth(values):
    """How much the largest value of the last quarter exceeds that of the one before it, as a share."""
    if len(values) < 4:
        raise ValueError(f"only {len(values)} readings")
    quarter = len(values) // 4
    before, last = values[-2 * quarter:-quarter], values[-quarter:]
    return max(last) / max(max(before), 1e-9) - 1


def key(row):
    return (row["model"], bool(row["grad_ckpt"]), int(row["batch"]))


def race_rows(ours, peers, compiled, rate_tflops):
    """One row for each setting that anybody ran: ours beside PyTorch, eager and compiled."""
    tables = [{key(row): row for row in rows} for rows in (ours, peers, compiled)]
    rows = []
    for setting in sorted(set().union(*tables)):
        our, peer, comp = (table.get(setting, {}) for table in tables)
        row = {"model": setting[0], "grad_ckpt": setting[1], "batch": setting[2]}
        for name, source in (("ours", our), ("peer", peer), ("compiled", comp)):
            row[name] = {k: source[k] for k in ("images_per_s", "ms_per_step", "tflops", "peak_reserved_gib",
                                                "peak_alloc_gib", "error", "skipped") if source.get(k) is not None}
        speed = [row[name].get("images_per_s") for name in ("ours", "peer", "compiled")]
        row["of_eager"] = round(speed[0] / speed[1], 3) if speed[0] and speed[1] else None
        row["of_compiled"] = round(speed[0] / speed[2], 3) if speed[0] and speed[2] else None
        tflops = our.get("tflops")
        row["share_of_matrix_rate"] = round(tflops / rate_tflops, 4) if tflops and rate_tflops else None
        rows.append(row)
    return rows


def aims(rows):
    """Which of issue 6's aims the race has reached: SD 1.5, batch 16 or 32, without recomputation."""
    of = [row for row in rows if row["model"] == "sd15" and not row["grad_ckpt"] and row["batch"] in (16, 32)]
    best = max((row["ours"].get("images_per_s", 0.0) for row in of), default=None)
    if not best:
        return {"best_images_per_s": None, "reached": []}
    eager = max((row["of_eager"] or 0.0 for row in of), default=0.0)
    compiled = max((row["of_compiled"] or 0.0 for row in of), default=0.0)
    reached = [name for name, speed in AIMS if best >= speed]
    reached += ["PyTorch eager on this card"] * (eager >= 1.0) + ["torch.compile on this card"] * (compiled >= 1.0)
    return {"best_images_per_s": best, "reached": reached}


def number(value, digits=1):
    return "–" if value is None else f"{value:.{digits}f}"


def race_table(rows):
    lines = ["| model | recomputation | batch | ours, images/s | ms | GiB | PyTorch eager | compiled | of eager | of the matrix rate |",
             "|---|---|---|---|---|---|---|---|---|---|"]
    for row in rows:
        our = row["ours"]
        cells = [row["model"], "yes" if row["grad_ckpt"] else "no", str(row["batch"]),
                 number(our.get("images_per_s"), 2) if "images_per_s" in our else our.get("error", "–"),
                 number(our.get("ms_per_step")), number(our.get("peak_reserved_gib")),
                 number(row["peer"].get("images_per_s"), 2), number(row["compiled"].get("images_per_s"), 2),
                 number(row["of_eager"], 2), number(row["share_of_matrix_rate"], 3)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def comparisons(lines):
    """Counts of a program's comparisons, the worst (by share of its limit), and all that failed."""
    found = [line for line in lines if "difference" in line]
    if not found:
        raise ValueError("nothing was compared")
    share = lambda line: float("inf") if line["difference"] is None else line["difference"] / line["limit"]
    return {"count": len(found), "worst": max(found, key=share), "failed": [line for line in found if not line["good"]]}


def stage_table(report):
    lines = [f"{'stage':16}{'state':10}{'seconds':>8}  why"]
    for name, stage in report["stages"].items():
        lines.append(f"{name:16}{stage['state']:10}{stage['seconds']:8.1f}  {stage.get('why', '')[:90]}")
    return "\n".join(lines)


def tables(report):
    """Everything that is printed below the JSON."""
    parts = []
    race = report["stages"].get("race", {})
    rows = (race.get("result") or race.get("partly") or {}).get("rows")
    if rows:
        parts.append(race_table(rows))
        parts.append(f"aims reached: {aims(rows)}")
    classes = (report["stages"].get("profile", {}).get("result") or {}).get("classes")
    if classes:
        parts.append("\n".join(f"{label:30}{sums['ms']:10.2f} ms{sums['share']:8.1%}{sums['launches']:9.0f} launches"
                               for label, sums in classes.items()))
    parts.append(stage_table(report))
    return "\n\n".join(parts)


def join(reports):
    """Joins the reports of several calls. Reports of different machines are not joined."""
    joined = {"stages": {}}
    for report in reports:
        if joined.get("gpu") and report.get("gpu") and joined["gpu"] != report["gpu"]:
            raise ValueError(f"one report is of {joined['gpu']}, another of {report['gpu']}")
        joined.update({name: value for name, value in report.items() if name != "stages"})
        for name, stage in report["stages"].items():
            before = joined["stages"].get(name)
            if name == "race" and before:
                stage = join_races(before, stage)
            if not (before and stage["state"] == "absent" and name != "race"):
                joined["stages"][name] = stage
    return joined


def join_races(first, second):
    results = [stage.get("result") or stage.get("partly") or {} for stage in (first, second)]
    rows = {key(row): row for result in results for row in result.get("rows", [])}
    merged = {**results[0], **results[1], "rows": [rows[setting] for setting in sorted(rows)]}
    state = "passed" if "passed" in (first["state"], second["state"]) and "failed" not in (first["state"], second["state"]) \
        else second["state"]
    stage = {**second, "state": state, "seconds": first["seconds"] + second["seconds"]}
    stage.pop("partly", None)
    stage["result"] = merged
    return stage


def main(paths):
    reports = []
    for path in paths:
        with open(path) as file:
            reports.append(json.load(file))
    joined = join(reports)
    print(json.dumps(joined, indent=1))
    print("\n" + tables(joined))
    return 0 if all(stage["state"] == "passed" for stage in joined["stages"].values()) else 1


if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    sys.exit(main(sys.argv[1:]))
