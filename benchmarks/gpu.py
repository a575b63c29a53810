"""Tessera on an NVIDIA GPU, in one command, against bounds measured in the same run.

    python benchmarks/gpu.py prepare --target cuda-sm90 --out PROGRAMS     # anywhere, with the compiler; no GPU
    python benchmarks/gpu.py run --programs PROGRAMS --random-weights 1    # with the GPU; no compiler, no network

`prepare` writes compiled programs without weights, under a megabyte each. `run` needs this source tree, numpy, msgspec
and cuda-bindings, and makes the weights on the spot; torch and transformers, where they are, are measured beside it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import platform
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
# Before everything that is installed: others call a package of theirs `benchmarks` too.
sys.path.insert(0, str(ROOT))

from benchmarks.gpu_models import CONFIGS, MEASURED, GpuModel, prepare  # noqa: E402
from benchmarks.gpu_results import Results  # noqa: E402

PARTS = ("decode", "kernels", "serving", "start", "peers")
SERVED = ("qwen3-0.6b", "qwen3-8b")
STARTED = "qwen2.5-1.5b"
PROMPT_TOKENS = 2048


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="benchmarks/gpu.py", description="Tessera on an NVIDIA GPU.")
    commands = parser.add_subparsers(dest="command", required=True)
    preparing = commands.add_parser("prepare", help="compile the models; needs no GPU")
    preparing.add_argument("--target", default="cuda-sm90")
    preparing.add_argument("--models", nargs="+", choices=sorted(CONFIGS), default=list(MEASURED))
    preparing.add_argument("--dtype", default="bf16")
    preparing.add_argument("--out", type=Path, required=True)
    running = commands.add_parser("run", help="measure; needs the GPU")
    running.add_argument("--programs", type=Path, required=True, help="what `prepare` wrote")
    running.add_argument("--random-weights", type=int, required=True, metavar="SEED")
    running.add_argument("--models", nargs="+", choices=sorted(CONFIGS), default=list(MEASURED))
    running.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    running.add_argument("--batch-tokens", type=int, default=2048, help="tokens of one step when serving")
    running.add_argument("--out", type=Path, default=Path("gpu-results.json"))
    options = parser.parse_args(arguments)
    if options.command == "prepare":
        for name in options.models:
            began = time.perf_counter()
            size = prepare(name, options.target, options.out, options.dtype)
            print(f"{name}: {size / 1e6:.2f} MB of code in {time.perf_counter() - began:.0f} s", flush=True)
        return 0
    return run(options)


def run(options: argparse.Namespace) -> int:
    """Measures all that can be measured; the table and the file hold the rest as failures."""
    from tessera_runtime.errors import TesseraError

    try:
        results = _measure(options)
    except TesseraError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    results.write(options.out)
    print(results.table())
    return 0


def _measure(options: argparse.Namespace) -> Results:
    from benchmarks import gpu_measure
    from tessera_runtime.executor.cuda.driver import open_cuda_driver

    results = Results()
    torch = _torch(results)
    driver = open_cuda_driver()
    from cuda.bindings import driver as api

    device = driver.device
    results.environment |= {
        **{"device": device.name, "capability": device.capability, "driver": device.driver_version},
        **{"python": platform.python_version(), "seed": options.random_weights, "memory": device.memory_bytes},
    }
    copy = gpu_measure.copy_bandwidth(driver, api)
    driver.close()
    results.note("copy bandwidth", copy)
    flops = None
    if torch is not None:
        from benchmarks.gpu_peers import matmul_seconds

        flops = 2.0 * 8192**3 / matmul_seconds(torch, 8192, 8192, 8192)
        results.note("cublas bf16", flops)
        torch.cuda.empty_cache()
    bounds = gpu_measure.Bounds(copy, flops)
    for name in options.models:
        model = GpuModel.read(options.programs / name)
        blocks = gpu_measure.USERS * gpu_measure.blocks_of(model, 2048) + 1
        executor = gpu_measure.open_model(model, options.random_weights, blocks, gpu_measure.USERS)
        with executor:
            if "decode" in options.parts:
                with _kept(results, f"decode {name}"):
                    _decode(results, model, executor, bounds)
            if "kernels" in options.parts:
                with _kept(results, f"kernels {name}"):
                    _kernels(results, model, executor, torch)
            if "serving" in options.parts and name in SERVED:
                with _kept(results, f"serving {name}"):
                    _serving(results, model, executor, bounds, options)
        if "start" in options.parts and name == STARTED:
            with _kept(results, f"start {name}"):
                _start(results, model, options.random_weights)
    if "peers" in options.parts and torch is not None:
        with _kept(results, "against transformers qwen3-0.6b"):
            _peers(results, torch, options.random_weights)
    return results


def _decode(results: Results, model: GpuModel, executor: Any, bounds: Any) -> None:
    from benchmarks.gpu_measure import CONTEXT, time_decoding

    time_of = time_decoding(model, executor, 1, CONTEXT, 200)
    size = model.step_bytes + CONTEXT * model.bytes_per_position
    bound = bounds.seconds(size)
    results.note(
        f"decode {model.name}",
        bound / time_of.wall,
        **{"wall": time_of.wall, "device": time_of.device, "bytes": size, "bound": bound},
    )
    results.note(f"layer {model.name}", (time_of.wall - bound) / model.layers)


def _kernels(results: Results, model: GpuModel, executor: Any, torch: Any) -> None:
    from benchmarks.gpu_measure import kernel_times
    from benchmarks.gpu_peers import attention_seconds, matmul_seconds

    shares: dict[str, list[float]] = {"linear": [], "attention": []}
    rows = []
    for each in kernel_times(model, executor, PROMPT_TOKENS):
        row: dict[str, Any] = {"group": each.group, "shape": each.shape, "seconds": each.seconds}
        row["flops_per_second"] = each.flops / each.seconds
        kind = model.raw["groups"][each.group]["kind"]
        if torch is not None and kind == "linear" and each.shape[0] >= PROMPT_TOKENS:
            row["torch"] = matmul_seconds(torch, *each.shape)
            shares["linear"].append(row["torch"] / each.seconds)
        elif torch is not None and kind == "attention" and "fold" not in each.group:
            tokens, heads, width = each.shape
            row["torch"] = attention_seconds(torch, tokens, heads, int(model.config["num_key_value_heads"]), width)
            if row["flops_per_second"] > 0 and each.seconds > row["torch"] / 50:
                shares["attention"].append(row["torch"] / each.seconds)
        rows.append(row)
    results.raw[f"kernels {model.name}"] = rows
    for kind, name in (("linear", "matmul"), ("attention", "attention")):
        if shares[kind]:
            results.note(f"{name} {model.name}", min(shares[kind]))
            results.figures[name] = min(results.figures.get(name, float("inf")), min(shares[kind]))


def _serving(results: Results, model: GpuModel, executor: Any, bounds: Any, options: argparse.Namespace) -> None:
    from benchmarks.gpu_measure import USERS, blocks_of, time_decoding, time_serving

    time_of = time_serving(model, executor, bounds, options.random_weights, options.batch_tokens)
    results.note(
        f"serving {model.name}",
        time_of.bound / time_of.seconds,
        **{"seconds": time_of.seconds, "bound": time_of.bound, "steps": time_of.steps},
        **{"prompt_tokens": time_of.prompt_tokens, "answer_tokens": time_of.answer_tokens},
        tokens_per_second=time_of.answer_tokens / time_of.seconds,
    )
    # Serving took the cache that its requests need; this takes one that each user's whole context fits.
    executor.allocate_cache(USERS * blocks_of(model, 2048))
    steady = time_decoding(model, executor, USERS, 1024, 100)
    idle = max(0.0, 1 - steady.device / steady.wall)
    results.note(f"idle {model.name}", idle, wall=steady.wall, device=steady.device)


def _start(results: Results, model: GpuModel, seed: int) -> None:
    from benchmarks.gpu_start import write_weights

    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "weights.safetensors"
        write_weights(model, weights, seed)
        command = [sys.executable, "-m", "benchmarks.gpu_start", str(model.folder.resolve()), str(weights)]
        best, parts = float("inf"), {}
        for _ in range(3):
            began = time.perf_counter()
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
            if done.returncode:
                raise RuntimeError(done.stderr.strip().splitlines()[-1])
            if time.perf_counter() - began < best:
                best, parts = time.perf_counter() - began, json.loads(done.stdout.splitlines()[-1])
    results.note(f"start {model.name}", best, **parts)


def _peers(results: Results, torch: Any, seed: int) -> None:
    from benchmarks.gpu_peers import transformers_serving_seconds

    mine = results.raw.get("serving qwen3-0.6b")
    if mine is None:
        raise RuntimeError("serving was not measured, so there is nothing to compare")
    theirs = transformers_serving_seconds(torch, CONFIGS["qwen3-0.6b"], seed)
    results.note("against transformers qwen3-0.6b", theirs / mine["seconds"], seconds=theirs)


def _torch(results: Results) -> Any:
    try:
        import torch
    except ImportError:
        results.failures["torch"] = "not installed: nothing is compared with cuBLAS, SDPA and transformers"
        return None
    if not torch.cuda.is_available():
        results.failures["torch"] = "it sees no GPU"
        return None
    results.environment["torch"] = torch.__version__
    return torch


@contextlib.contextmanager
def _kept(results: Results, name: str) -> Iterator[Callable[[], None]]:
    """What fails is noted, and the rest is measured all the same."""
    try:
        yield lambda: None
    except Exception as error:
        traceback.print_exc()
        results.failures[name] = f"{type(error).__name__}: {error}"


if __name__ == "__main__":
    sys.exit(main())
