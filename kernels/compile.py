#!/usr/bin/env python3
"""Compiles each kernel of a folder to PTX by NVRTC and assembles it, without a GPU.

usage: compile.py SOURCES LIMITS [--arch sm_80 sm_90a]

SOURCES: a folder of complete CUDA C++ texts, NAME.cu (`cargo run -p ballast-kernels --example write_sources`).
LIMITS: a table: kernel, registers, bytes of shared memory, bytes of spills; what is found may not exceed it,
and every kernel has a line. Needs nvidia-cuda-nvrtc-cu12, nvidia-cuda-nvcc-cu12 (ptxas) in this Python.
NVRTC gets the options that CubeCL gives it. Prints a table; exit 1 when something does not compile or exceeds a limit.
"""
import argparse, ctypes, pathlib, re, subprocess, sys, tempfile

import nvidia.cuda_nvrtc, nvidia.cuda_nvcc


def under(package, pattern):
    for root in package.__path__:
        for found in sorted(pathlib.Path(root).glob(pattern)):
            return found
    sys.exit(f"no {pattern} in {package.__name__}")


class Nvrtc:
    def __init__(self):
        path = under(nvidia.cuda_nvrtc, "lib/libnvrtc.so.*")
        self.lib = ctypes.CDLL(str(path))
        major, minor = ctypes.c_int(), ctypes.c_int()
        self.lib.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
        self.version = f"{major.value}.{minor.value}"

    def text(self, program, what):
        size = ctypes.c_size_t()
        getattr(self.lib, f"nvrtcGet{what}Size")(program, ctypes.byref(size))
        buffer = ctypes.create_string_buffer(size.value)
        getattr(self.lib, f"nvrtcGet{what}")(program, buffer)
        return buffer.value.decode()

    def compile(self, name, source, arch):
        program = ctypes.c_void_p()
        self.lib.nvrtcCreateProgram(ctypes.byref(program), source.encode(), name.encode(), 0, None, None)
        options = [f"--gpu-architecture={arch}", "-lineinfo"]
        array = (ctypes.c_char_p * len(options))(*[option.encode() for option in options])
        code = self.lib.nvrtcCompileProgram(program, len(options), array)
        log = self.text(program, "ProgramLog").strip()
        if code or log:
            raise SystemExit(f"{name} for {arch}: NVRTC says\n{log}")
        return self.text(program, "PTX")


ENTRY = re.compile(r"Compiling entry function '(\w+)'.*?(\d+) bytes spill stores, (\d+) bytes spill loads"
                   r".*?Used (\d+) registers([^\n]*)", re.S)


def assemble(name, ptx, arch):
    with tempfile.TemporaryDirectory() as scratch:
        file = pathlib.Path(scratch, f"{name}.ptx")
        file.write_text(ptx)
        ptxas = under(nvidia.cuda_nvcc, "bin/ptxas")
        done = subprocess.run([str(ptxas), "-v", f"-arch={arch}", str(file), "-o", f"{scratch}/out"], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{name} for {arch}: ptxas says\n{done.stderr}")
    for kernel, stores, loads, registers, rest in ENTRY.findall(done.stderr):
        shared = re.search(r"(\d+) bytes smem", rest)
        yield kernel, int(registers), int(shared.group(1)) if shared else 0, int(stores) + int(loads)


def of_file(name, kernels):
    """The kernel that the file is named for; its source may define others beside it."""
    named = [kernel for kernel in kernels if name.startswith(kernel[0])]
    return [max(named, key=lambda kernel: len(kernel[0]))[1:]] if named else []


def read_limits(path):
    rows = [line.split() for line in path.read_text().splitlines() if line and not line.startswith("#")]
    return {name: tuple(map(int, numbers)) for name, *numbers in rows}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", type=pathlib.Path)
    parser.add_argument("limits", type=pathlib.Path)
    parser.add_argument("--arch", nargs="+", default=["sm_80", "sm_90a"])
    args = parser.parse_args()
    nvrtc, limits, wrong, seen = Nvrtc(), read_limits(args.limits), [], set()
    print(f"NVRTC {nvrtc.version}\n{'kernel':34}{'arch':8}{'registers':>10}{'shared':>8}{'spills':>8}")
    for file in sorted(args.sources.glob("*.cu")):
        for arch in args.arch:
            ptx = nvrtc.compile(file.name, file.read_text(), arch)
            for found in of_file(file.stem, assemble(file.stem, ptx, arch)):
                seen.add(file.stem)
                print(f"{file.stem:34}{arch:8}{found[0]:10}{found[1]:8}{found[2]:8}")
                limit = limits.get(file.stem)
                if limit is None:
                    wrong.append(f"{file.stem} has no line in {args.limits}")
                elif any(f > l for f, l in zip(found, limit)):
                    wrong.append(f"{file.stem} on {arch}: {found} exceeds {list(limit)}")
    wrong += [f"{name} is in {args.limits} and not in the sources" for name in limits.keys() - seen]
    print("\n".join(sorted(set(wrong))) or f"{len(seen)} kernels within their limits")
    return 1 if wrong or not seen else 0


if __name__ == "__main__":
    sys.exit(main())
