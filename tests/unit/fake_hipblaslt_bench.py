#!/usr/bin/env -S python3 -I -S
"""A stand-in for hipblaslt-bench: its formats of three releases, planted times, planted faults.

$FAKE_HIPBLASLT_PLAN names a JSON file:

    {"release": "2024" | "2025" | "2026", "version": "100200", "git_version": "de5c1aebb6",
     "device": "gfx942:sramecc+:xnack-", "units": 304,
     "default": 11, "solutions": {"11": {"us": 10.0}, "12": {"us": 8.0, "norm_error": 1e-3}},
     "problems": {"64x64x128": {"default": …, "solutions": …}},
     "noise": 0.01, "bias_us": 0.0, "log": "calls.jsonl", "marks": "directory"}

A solution's `fault` is what happens when it runs alone, `survey_fault` when it comes up among
all: "crash", "crash once", "hang", "refuse", "garbage", "truncate", "nothing", "ignore" (another
solution runs instead). Releases differ in flags, in columns and in the tuning file:

    2024  no tuning file, no --skip_slow_solution_ratio
    2025  entries without their header; the index's column is spelled soulution_index
    2026  entries with their header; more columns
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

SIZES = (
    *("m", "n", "k", "lda", "ldb", "ldc", "ldd", "lde"),
    *("stride_a", "stride_b", "stride_c", "stride_d", "stride_e"),
)
VALUED = {
    *("alpha", "beta", "transA", "transB", "batch_count", "scaleA", "scaleB", "a_type", "b_type"),
    *("c_type", "d_type", "scale_type", "bias_type", "compute_type", "bias_source"),
    *("activation_type", "algo_method", "solution_index", "requested_solution", "rotating"),
    *("cold_iters", "iters", "workspace", "api_method"),
}
VALUED_2025 = {"skip_slow_solution_ratio", "aux_type"}
BARE = {
    *("bias_vector", "gradient", "use_e", "any_stride", "grouped_gemm", "flush", "amaxD"),
    *("scaleAlpha_vector", "use_gpu_timer", "print_kernel_info", "verify", "help", "version"),
}
BARE_2025 = {"swizzleA", "swizzleB"}
DEFAULTS = {
    "alpha": "1",
    "beta": "0",
    "transA": "N",
    "transB": "N",
    "batch_count": "1",
    "scaleA": "0",
    "scaleB": "0",
    "compute_type": "f32_r",
    "activation_type": "none",
    "algo_method": "heuristic",
    "solution_index": "-1",
    "requested_solution": "1",
    "rotating": "0",
    "cold_iters": "2",
    "iters": "10",
    "skip_slow_solution_ratio": "0",
}


class Bench:
    def __init__(self, plan: dict, arguments: list[str]) -> None:
        self.plan, self.release = plan, plan.get("release", "2026")
        self.tuning_file = os.environ.get("HIPBLASLT_TUNING_FILE") if self.later else None
        self.options = dict(DEFAULTS)
        if self.tuning_file:
            self.options |= {"algo_method": "all", "requested_solution": "-1"}
        self.options |= self.read(arguments)
        size = "x".join(self.options.get(name, "128") for name in "mnk")
        self.plan = plan | plan.get("problems", {}).get(size, {})
        self.solutions = {int(k): v for k, v in self.plan.get("solutions", {}).items()}

    @property
    def later(self) -> bool:
        return self.release != "2024"

    def read(self, arguments: list[str]) -> dict[str, str]:
        valued = {*VALUED, *SIZES} | (VALUED_2025 if self.later else set())
        bare = BARE | (BARE_2025 if self.later else set())
        found: dict[str, str] = {}
        queue = list(arguments)
        while queue:
            word = queue.pop(0)
            name = word.lstrip("-")
            single = len(name) == 1
            if word != ("-" if single else "--") + name or name not in valued | bare:
                sys.exit(f"unrecognised option '{word}'")
            if name in bare:
                found[name] = "1"
            elif queue:
                found[name] = queue.pop(0)
            else:
                sys.exit(f"the required argument for option '{word}' is missing")
        return found

    def run(self) -> None:
        if "help" in self.options:
            names = {*VALUED, *BARE} | ((VALUED_2025 | BARE_2025) if self.later else set())
            print("\n".join(f"--{name} <value>" for name in sorted(names)))
            return
        self.check_tuning_file()
        print(f"hipBLASLt version: {self.plan.get('version', '100200')}")
        print(f"hipBLASLt git version: {self.plan['git_version']}")
        if "version" in self.options:
            return
        device = self.plan["device"]
        print("Query device success: there are 1 devices. (Target device ID is 0)")
        print(f"Device ID 0 : AMD Instinct stand-in {device}")
        print("with 206.1 GB memory, max. SCLK 2100 MHz, max. MCLK 1300 MHz\n", flush=True)
        if self.options["algo_method"] == "index" and not self.tuning_file:
            self.single(int(self.options["solution_index"]))
        elif self.options["requested_solution"] == "1" and not self.tuning_file:
            self.single(self.plan["default"])
        else:
            self.survey()

    def check_tuning_file(self) -> None:
        if not self.tuning_file:
            return
        path = Path(self.tuning_file)
        first = f"Git Version: {self.plan['git_version']}\n"
        if not path.exists():
            path.write_text(first)
            print("Initialize tuning file.")
        elif not path.read_text().startswith(first):
            print("The hipBLASLt git version and the tuning file git version are not the same.")
            sys.exit(1)
        print("HIPBLASLT_TUNING_FILE is the correct setting.")

    def single(self, index: int) -> None:
        solution = self.solutions.get(index)
        if solution is None or solution.get("fault") == "refuse":
            print("No Solution Found!!", file=sys.stderr)
            return
        if solution.get("fault") == "ignore":
            index = self.plan["default"]
        if self.fault(solution.get("fault"), index):
            return
        print("Is supported 1 / Total solutions: 1")
        self.row(0, index)

    def survey(self) -> None:
        ordered = [self.plan["default"], *(i for i in self.solutions if i != self.plan["default"])]
        print(f"Is supported {len(ordered)} / Total solutions: {len(ordered)}")
        ratio = float(self.options["skip_slow_solution_ratio"])
        best = float("inf")
        shown: list[tuple[float, int, int]] = []
        for place, index in enumerate(ordered):
            if self.fault(self.solutions[index].get("survey_fault"), index):
                return
            us = self.us(index)
            best = min(best, us)
            if us * ratio > best:
                print(f"Skip solution: {place} (best warm-up = {best:.2g} us , warm-up = {us:.2g})")
                continue
            shown.append((self.row(place, index, len(ordered) == 1), place, index))
        if len(ordered) > 1:
            us, place, index = min(shown)
            print("Winner: ")
            self.row(place, index, True, us)

    def fault(self, kind: str | None, index: int) -> bool:
        """Misbehave; whether that was all."""
        if kind == "crash once":
            mark = Path(self.plan["marks"]) / str(index)
            kind = None if mark.exists() else "crash"
            mark.touch()
        sys.stdout.flush()
        if kind == "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        if kind == "hang":
            time.sleep(3600)
        if kind == "garbage":
            sys.stdout.buffer.write(b"[0]:m,n,us\n\xff\xfe\x00;;;\n    1,2\n[1]:us\n    nan\n[x]\n")
        if kind == "truncate":
            names, values = self.cells(index, 12.5)
            text = f"[0]:{','.join(names)}\n    {','.join(values)}\n    --Solution index: {index}\n"
            sys.stdout.write(text[: text.index(values[-1], text.index("    ")) + 2])
        return kind in ("garbage", "truncate", "nothing")

    def us(self, index: int) -> float:
        noise = self.plan.get("noise", 0.0)
        if noise:
            import random

            noise = random.gauss(0.0, noise)
        bias = self.plan.get("bias_us", 0.0) if "bias_vector" in self.options else 0.0
        return self.solutions[index]["us"] * (1 + noise) + bias

    def cells(self, index: int, us: float) -> tuple[list[str], list[str]]:
        o = {name: self.options.get(name, "0") for name in (*SIZES, "bias_vector", "amaxD")}
        o |= self.options
        flops = 2.0 * int(o["m"]) * int(o["n"]) * int(o["k"]) * int(o["batch_count"])
        pairs: dict[str, str] = {
            **{n: o[n] for n in ("transA", "transB")},
            "grouped_gemm": "0",
            "batch_count": o["batch_count"],
            **{n: o[n] for n in ("m", "n", "k")},
            "alpha": f"{float(o['alpha']):g}",
            "lda": o["lda"],
            "stride_a": o["stride_a"],
            "beta": f"{float(o['beta']):g}",
            "ldb": o["ldb"],
            "stride_b": o["stride_b"],
            **{n: o[n] for n in ("ldc", "stride_c", "ldd", "stride_d")},
            **{n: o[n] for n in ("a_type", "b_type", "c_type", "d_type", "compute_type")},
            "scaleA": o["scaleA"],
            "scaleB": o["scaleB"],
            "scaleC": "0",
            "scaleD": "0",
            "amaxD": o["amaxD"],
        }
        if self.release == "2026":
            pairs |= {"swizzle_a": o.get("swizzleA", "0"), "swizzle_b": o.get("swizzleB", "0")}
        pairs |= {"activation_type": o["activation_type"], "bias_vector": o["bias_vector"]}
        pairs["bias_type"] = o.get("bias_type", o["d_type"])
        if self.later:
            pairs["aux_type"] = o.get("aux_type", o["d_type"])
        if self.release == "2026":
            pairs |= {"rotating_buffer": o["rotating"], "flush": o.get("flush", "0")}
            pairs["use_gpu_timer"] = o.get("use_gpu_timer", "0")
        pairs |= {"hipblaslt-Gflops": f"{flops / us / 1e3:g}", "hipblaslt-GB/s": f"{8e5 / us:g}"}
        pairs["us"] = f"{us:g}"
        if "verify" in o:
            error = self.solutions[index].get("norm_error", 1e-4)
            pairs |= {"CPU-Gflops": "10", "CPU-us": "1000", "norm_error": f"{error:g}"}
            pairs |= {"atol": "1e-05", "rtol": "1e-05"}
        return list(pairs), list(pairs.values())

    def row(self, place: int, index: int, last: bool = False, us: float | None = None) -> float:
        us = self.us(index) if us is None else us
        names, values = self.cells(index, us)
        if last and self.tuning_file:
            names.append("solution_index" if self.release == "2026" else "soulution_index")
            values.append(str(index))
            where = [self.plan["device"], str(self.plan["units"])]
            with open(self.tuning_file, "a") as file:
                if self.release == "2026":
                    file.write(f"    {','.join([*names, 'gcnArchName', 'CUs'])}\n")
                file.write(f"    {','.join([*values, *where])}\n")
        print(f"[{place}]:{','.join(names)}\n    {','.join(values)}")
        if "print_kernel_info" in self.options:
            print(f"    --Solution index: {index}")
            print(f"    --Solution name:  Cijk_stand_in_MT{index}")
            print(f"    --kernel name:    Cijk_stand_in_kernel_MT{index}", flush=True)
        return us


def main() -> None:
    plan = json.loads(Path(os.environ["FAKE_HIPBLASLT_PLAN"]).read_text())
    if "log" in plan:
        seen = {name: value for name, value in os.environ.items() if name.startswith("HIP")}
        call = {"argv": sys.argv[1:], "env": seen, "pid": os.getpid(), "at": time.time()}
        with open(plan["log"], "a") as file:
            file.write(json.dumps(call) + "\n")
    Bench(plan, sys.argv[1:]).run()


if __name__ == "__main__":
    main()
