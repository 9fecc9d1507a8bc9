#!/usr/bin/env python3
"""Tests of report.py and of the script's own logic, without a GPU: python3 -m unittest discover -s tests/gpu"""
import importlib.machinery, importlib.util, json, pathlib, sys, tempfile, types, unittest

HERE = pathlib.Path(__file__).resolve().parent
sys.dont_write_bytecode = True
sys.path.insert(0, str(HERE))
import report as reports  # noqa: E402


def script():
    loader = importlib.machinery.SourceFileLoader("gpu_run", str(HERE / "run"))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("gpu_run", loader))
    loader.exec_module(module)
    return module


class Parsing(unittest.TestCase):
    def test_a_line_that_was_cut_off_is_passed_over(self):
        self.assertEqual(reports.json_lines('words\n{"a": 1}\n{"b": \n'), [{"a": 1}])

    def test_lines_of_the_worker(self):
        log = ("12:00 INFO worker 1: first step computed step=0 compute_seconds=3.5 since_start_seconds=41.25\n"
               "12:01 INFO worker 1: device memory step=1 in_use_bytes=1000 reserved_bytes=4096\n"
               "12:02 INFO worker 1: device memory step=99 in_use_bytes=1010 reserved_bytes=4096\n")
        self.assertEqual(reports.device_memory(log), [(1, 1000.0, 4096.0), (99, 1010.0, 4096.0)])
        self.assertEqual(reports.first_step_seconds(log), 41.25)
        self.assertIsNone(reports.first_step_seconds("nothing of it"))

    def test_growth_is_of_the_last_quarter(self):
        self.assertEqual(reports.growth([9, 9, 1, 5, 4, 5, 5, 5]), 0.0)
        self.assertAlmostEqual(reports.growth([1, 2, 3, 4, 5, 6, 7, 8]), 8 / 6 - 1)
        with self.assertRaises(ValueError):
            reports.growth([1, 2])

    def test_classes_of_kernels(self):
        for name, label in [("attention_backward_query_40", "attention"), ("group_norm_apply", "norm"),
                            ("cubek_convolution::kernels::x", "convolution"), ("norm_finish", "norm"), ("adamw", "optimizer"),
                            ("void cutlass::Kernel2<cutlass_80_wmma_tensorop_bf16>", "matrix product"),
                            ("cubek_matmul::MatmulEntry", "matrix product"), ("ncclDevKernel_AllReduce", "communication"),
                            ("unary_numeric", "element by element and other")]:
            self.assertEqual(reports.class_of(name), label, name)

    def test_sums_of_classes(self):
        kernels = [{"name": "attention_forward_40", "ms": 1.0, "launches": 5}, {"name": "matmul", "ms": 3.0, "launches": 1},
                   {"name": "attention_means_40", "ms": 0.0, "launches": 5}]
        classes = reports.kernel_classes(kernels)
        self.assertEqual(list(classes), ["matrix product", "attention"])
        self.assertEqual(classes["attention"], {"ms": 1.0, "share": 0.25, "launches": 10.0, "kernels": 2})
        self.assertEqual(reports.kernel_classes([]), {})

    def test_table_of_nsys(self):
        table = ("Generating SQLite file\n\nTime (%),Total Time (ns),Instances,Avg (ns),Name\n"
                 '60.0,6000000,4,1500000,"void gemm<a, b>(int, int)"\n40.0,4000000,2,2000000,attention_forward\n')
        kernels = reports.nsys_kernels(table, steps=2)
        self.assertEqual(kernels[0], {"name": "void gemm<a, b>(int, int)", "ms": 3.0, "launches": 2.0})
        with self.assertRaises(ValueError):
            reports.nsys_kernels("no table", 1)

    def test_comparisons(self):
        line = lambda difference, good=True: {"difference": difference, "limit": 0.01, "good": good}
        found = reports.comparisons([line(0.001), line(0.009), {"comparisons": 2}])
        self.assertEqual((found["count"], found["worst"]["difference"], found["failed"]), (2, 0.009, []))
        # serde_json writes what is no number as null.
        found = reports.comparisons([line(0.009), line(None, False)])
        self.assertEqual((found["worst"]["difference"], len(found["failed"])), (None, 1))
        with self.assertRaises(ValueError):
            reports.comparisons([{"comparisons": 0}])


def row(model="sd15", batch=16, ckpt=False, speed=50.0, **more):
    return {"model": model, "batch": batch, "grad_ckpt": ckpt, "images_per_s": speed, "ms_per_step": 1e3 * batch / speed,
            "tflops": 2.4 * speed, **more}


class Race(unittest.TestCase):
    def test_rows_pair_what_both_ran(self):
        rows = reports.race_rows([row(speed=60), row(batch=32, speed=66)], [row(speed=50)],
                                 [{"model": "sd15", "batch": 16, "grad_ckpt": False, "error": "out of memory"}], 600.0)
        self.assertEqual([r["batch"] for r in rows], [16, 32])
        self.assertEqual((rows[0]["of_eager"], rows[0]["of_compiled"], rows[1]["of_eager"]), (1.2, None, None))
        self.assertAlmostEqual(rows[0]["share_of_matrix_rate"], 0.24)
        table = reports.race_table(rows)
        self.assertEqual(table.count("\n"), 3)
        self.assertIn("| sd15 | no | 16 | 60.00 |", table)

    def test_aims(self):
        rows = reports.race_rows([row(speed=115)], [row(speed=100)], [row(speed=120)], 600.0)
        self.assertEqual(reports.aims(rows)["reached"], ["40 images/s (an A100 with MosaicML's stack)", "110 images/s",
                                                          "PyTorch eager on this card"])
        # Neither another model nor a small batch nor recomputation counts.
        for other in (row(model="sd21", speed=500), row(batch=4, speed=500), row(ckpt=True, speed=500)):
            self.assertEqual(reports.aims(reports.race_rows([other], [], [], 600.0))["reached"], [])

    def test_reports_of_several_calls_are_joined(self):
        stage = lambda state, **more: {"state": state, "seconds": 1.0, **more}
        race = lambda model, state="passed": stage(state, result={"rows": reports.race_rows([row(model=model)], [], [], None)})
        first = {"gpu": "H100", "stages": {"machine": stage("passed"), "parity": stage("absent"), "race": race("sd15")}}
        second = {"gpu": "H100", "stages": {"parity": stage("passed"), "machine": stage("absent"), "race": race("sd21")}}
        joined = reports.join([first, second])
        self.assertEqual({name: s["state"] for name, s in joined["stages"].items()},
                         {"machine": "passed", "parity": "passed", "race": "passed"})
        self.assertEqual([r["model"] for r in joined["stages"]["race"]["result"]["rows"]], ["sd15", "sd21"])
        self.assertIn("sd21", reports.tables(joined))
        with self.assertRaises(ValueError):
            reports.join([first, {"gpu": "A100", "stages": {}}])


class Script(unittest.TestCase):
    """The script with programs that are shell scripts."""

    def check(self, programs, stages, **more):
        run = script()
        with tempfile.TemporaryDirectory() as folder:
            folder = pathlib.Path(folder)
            args = dict(pack=None, out=folder / "out", device="cpu", stages=stages, budget_s=60.0, models=["tiny"], batches=[1],
                        recompute=["no"], steps=1, warmup=0, compiled=False)
            run.Check.RESERVE_S = 0.5
            check = run.Check(types.SimpleNamespace(**{**args, **more}))
            check.programs = folder / "programs"
            check.programs.mkdir()
            for name, text in programs.items():
                (check.programs / name).write_text("#!/bin/sh\n" + text)
                (check.programs / name).chmod(0o755)
            sys.stdout, stdout = open("/dev/null", "w"), sys.stdout
            try:
                code = check.all()
            finally:
                sys.stdout.close()
                sys.stdout = stdout
            return code, json.loads((folder / "out/report.json").read_text())["stages"]

    def test_what_was_not_carried_is_absent_and_not_passed(self):
        code, stages = self.check({}, ["nccl", "parity", "profile"])
        self.assertEqual((code, {stage["state"] for stage in stages.values()}), (1, {"absent"}))
        self.assertIn("gpu-check was not carried", stages["parity"]["why"])

    def test_a_machine_that_is_ready_passes(self):
        code, stages = self.check({"ballast": """echo '{"ready": true, "advice": []}'"""}, ["machine"])
        self.assertEqual((code, stages["machine"]["state"]), (0, "passed"))
        code, stages = self.check({"ballast": """echo '{"ready": false, "advice": ["no driver"]}'; exit 1"""}, ["machine"])
        self.assertEqual((code, stages["machine"]["state"]), (1, "failed"))
        self.assertIn("no driver", stages["machine"]["why"])

    GOOD = """echo '{"difference": 0.001, "limit": 0.01, "good": true}'"""

    def test_parity_passes_and_fails_with_its_comparisons(self):
        self.assertEqual(self.check({"gpu-check": self.GOOD}, ["parity"])[0], 0)
        bad = """echo '{"operation": "geglu", "difference": 0.1, "limit": 0.01, "good": false}'; exit 1"""
        code, stages = self.check({"gpu-check": bad}, ["parity"])
        self.assertEqual((code, stages["parity"]["state"]), (1, "failed"))
        self.assertIn("geglu", stages["parity"]["why"])

    def test_a_program_that_compared_nothing_fails(self):
        self.assertEqual(self.check({"gpu-check": "exit 101"}, ["parity"])[1]["parity"]["state"], "failed")

    def test_one_stage_that_fails_does_not_keep_the_next_from_running(self):
        programs = {"ballast": "echo broken >&2; exit 3", "gpu-check": self.GOOD}
        code, stages = self.check(programs, ["machine", "parity"])
        self.assertEqual((code, stages["machine"]["state"], stages["parity"]["state"]), (1, "failed", "passed"))
        self.assertIn("ended with 3", stages["machine"]["why"])

    def test_nothing_begins_when_the_time_is_spent(self):
        code, stages = self.check({"gpu-check": self.GOOD}, ["parity"], budget_s=0.1)
        self.assertEqual((code, stages["parity"]["state"]), (1, "absent"))
        self.assertIn("a call of its own", stages["parity"]["why"])

    def test_a_program_that_hangs_is_ended_with_what_it_started(self):
        with tempfile.NamedTemporaryFile() as file:
            hanging = f"sleep 600 & echo $! >{file.name}; wait"
            code, stages = self.check({"gpu-check": hanging}, ["parity"], budget_s=2.0)
            child = pathlib.Path(f"/proc/{int(file.read())}/stat")
        self.assertEqual((code, stages["parity"]["state"]), (1, "failed"))
        self.assertIn("took longer", stages["parity"]["why"])
        # Gone, or waiting for whoever takes in orphans.
        self.assertTrue(not child.exists() or child.read_text().rsplit(")")[1].split()[0] == "Z")


if __name__ == "__main__":
    unittest.main()
