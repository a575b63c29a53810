"""The measuring run: which parts there are, and what each puts into the results."""

from __future__ import annotations

import contextlib
import json
import platform
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.cpu.machine import describe
from benchmarks.gpu_measure import (
    CONTEXT,
    USERS,
    Bounds,
    blocks_of,
    copy_bandwidth,
    kernel_times,
    launch_times,
    lengths_of,
    open_model,
    time_decoding,
    time_serving,
)
from benchmarks.gpu_mixed import Mix, time_mixed
from benchmarks.gpu_models import BASE_DTYPE, CONFIGS, QUANTIZED_DTYPES, GpuModel, variant_of
from benchmarks.gpu_parts import Parts
from benchmarks.gpu_quantized import time_users
from benchmarks.gpu_results import Results
from benchmarks.gpu_sampling import time_sampling
from tessera_runtime.executor.cuda.driver import open_cuda_driver
from tessera_runtime.executor.gpu.executor import GpuExecutor

ROOT = Path(__file__).resolve().parent.parent
SECONDS: Mapping[str, float] = {
    **{"bounds": 120, "open": 120, "decode": 60, "launches": 60, "kernels": 90, "serving": 120, "start": 120},
    **{"quantized": 60, "sampling": 40, "mixed": 60, "peers": 300},
}
"""The most that a part may take, for one model."""
PARTS = ("decode", "launches", "kernels", "sampling", "serving", "mixed", "quantized", "start", "peers")
SERVED = ("qwen3-0.6b", "qwen3-8b")
SAMPLED = "qwen3-0.6b"
SAMPLING_USERS = (1, 64)
STARTED = "qwen2.5-1.5b"
RIVALLED = "qwen3-0.6b"
PROMPT_TOKENS = 2048
STEADY_CONTEXT = 1024
LIBRARIES = ("torch", "transformers", "triton", "numpy", "msgspec", "cuda-bindings")


@dataclass(frozen=True)
class RunOptions:
    """What `python benchmarks/gpu.py run` was asked for."""

    programs: Path
    seed: int
    models: Sequence[str]
    parts: Sequence[str]
    batch_tokens: int
    rival_seconds: float
    out: Path
    add: bool = False
    """To what `out` holds already."""


def by_size(names: Sequence[str]) -> list[str]:
    """The small first: their figures are there even if a run ends early."""

    def size(name: str) -> int:
        config = CONFIGS[name]
        return int(config["num_hidden_layers"] * config["hidden_size"] * config["intermediate_size"])

    return sorted(names, key=size)


Work = Callable[[GpuModel, GpuExecutor], None]


class OpenedModel:
    """A model and its executor, which can be opened anew after a part that failed."""

    def __init__(self, model: GpuModel, seed: int) -> None:
        self.model = model
        self._seed = seed
        self._executor: GpuExecutor | None = None

    @property
    def is_open(self) -> bool:
        return self._executor is not None

    def open(self) -> None:
        blocks = USERS * blocks_of(self.model, 2048) + 1
        self._executor = open_model(self.model, self._seed, blocks, USERS)

    def use(self, work: Work) -> None:
        if self._executor is not None:
            work(self.model, self._executor)

    def close(self) -> None:
        if self._executor is not None:
            # After a part that was stopped anything may be left undone; it matters to nobody any more.
            with contextlib.suppress(Exception):
                self._executor.close()
            self._executor = None


class OtherDevice(Exception):
    """Results of one device are to be added to those of another."""


class NotPrepared(Exception):
    """There are no programs of a part."""


class Run:
    """One run on one device."""

    def __init__(self, options: RunOptions) -> None:
        self.options = options
        self.results = Results.read(options.out) if options.add and options.out.exists() else Results()
        self.parts = Parts(self.results, options.out)
        self.bounds = Bounds(1.0, None)
        self.torch: Any = None

    def measure(self) -> Results:
        """All that was asked for, as far as it can be measured. Without a device it raises `TesseraError`, and
        `OtherDevice` if it is another one."""
        self._describe()
        self._part("bounds", "", self._bounds)
        if "copy bandwidth" not in self.results.figures:
            return self.results
        for name in by_size(self.options.models):
            self._measure_model(name)
        if self.torch is not None:
            self._part("peers", f"against transformers {RIVALLED}", self._rival)
        return self.results

    def _part(self, part: str, name: str, work: Callable[[], None]) -> bool:
        if part in PARTS and part not in self.options.parts:
            return True
        return self.parts.run(name or part, SECONDS[part], work)

    def _measure_model(self, name: str) -> None:
        model = GpuModel.read(self.options.programs / name)
        self.results.environment.setdefault("programs", {})[name] = model.built
        opened = OpenedModel(model, self.options.seed)
        works: dict[str, Work] = {"decode": self._decode, "launches": self._launches, "kernels": self._kernels}
        if name == SAMPLED:
            works["sampling"] = self._sampling
        if name in SERVED:
            works |= {"serving": self._serving, "mixed": self._mixed}
        try:
            for part, work in works.items():
                if part not in self.options.parts:
                    continue
                if not opened.is_open and not self._part("open", f"open {name}", opened.open):
                    break
                if not self._part(part, f"{part} {name}", partial(opened.use, work)):
                    opened.close()
        finally:
            opened.close()
        if name in SERVED and "quantized" in self.options.parts:
            self._measure_quantized(name)
        if name == STARTED:
            self._part("start", f"start {name}", partial(self._start, model))

    def _measure_quantized(self, name: str) -> None:
        """Each dtype that there is a program of is a part of its own, with weights of its own."""
        whole = f"quantized {name}"
        self.results.failures.pop(whole, None)
        found = [each for each in QUANTIZED_DTYPES if (self.options.programs / variant_of(name, each)).is_dir()]
        if not found:
            self._part("quantized", whole, partial(self._without_programs, name))
            return
        for dtype in (BASE_DTYPE, *found):
            self._part("quantized", f"{whole}-{dtype}", partial(self._quantized, name, dtype))

    def _without_programs(self, name: str) -> None:
        raise NotPrepared(
            f"{self.options.programs} holds none of {', '.join(variant_of(name, each) for each in QUANTIZED_DTYPES)}; "
            "`prepare` makes them unless told otherwise"
        )

    def _describe(self) -> None:
        self.torch = _torch(self.results)
        driver = open_cuda_driver()
        device = driver.device
        driver.close()
        before = self.results.environment.get("device", device.name)
        if before != device.name:
            raise OtherDevice(f"{self.options.out} holds results of {before}, and this is {device.name}.")
        versions = {}
        for library in LIBRARIES:
            with contextlib.suppress(metadata.PackageNotFoundError):
                versions[library] = metadata.version(library)
        self.results.environment |= {
            **{"device": device.name, "capability": device.capability, "driver": device.driver_version},
            **{"python": platform.python_version(), "seed": self.options.seed, "memory": device.memory_bytes},
            **{"when": time.strftime("%Y-%m-%d"), "host": describe(), "versions": versions},
        }

    def _bounds(self) -> None:
        from cuda.bindings import driver as api

        driver = open_cuda_driver()
        copy = copy_bandwidth(driver, api)
        driver.close()
        self.results.note("copy bandwidth", copy)
        flops = None
        if self.torch is not None:
            from benchmarks.gpu_peers import matmul_seconds

            flops = 2.0 * 8192**3 / matmul_seconds(self.torch, 8192, 8192, 8192)
            self.results.note("cublas bf16", flops)
            self.torch.cuda.empty_cache()
        self.bounds = Bounds(copy, flops)

    def _decode(self, model: GpuModel, executor: GpuExecutor) -> None:
        time_of = time_decoding(model, executor, 1, CONTEXT, 200)
        size = model.step_bytes + CONTEXT * model.bytes_per_position
        bound = self.bounds.seconds(size)
        self.results.note(
            f"decode {model.name}",
            bound / time_of.wall,
            **{"wall": time_of.wall, "device": time_of.device, "bytes": size, "bound": bound},
        )
        self.results.note(f"layer {model.name}", (time_of.wall - bound) / model.layers)

    def _launches(self, model: GpuModel, executor: GpuExecutor) -> None:
        users = {}
        for count, context in ((1, CONTEXT), (USERS, STEADY_CONTEXT)):
            step, groups = launch_times(model, executor, count, context)
            users[str(count)] = {"context": context, "step": step, "groups": [asdict(each) for each in groups]}
        self.results.raw[f"launches {model.name}"] = {"layers": model.layers, "users": users}

    def _kernels(self, model: GpuModel, executor: GpuExecutor) -> None:
        from benchmarks.gpu_peers import attention_seconds, matmul_seconds

        shares: dict[str, list[float]] = defaultdict(list)
        rows = []
        for each in kernel_times(model, executor, PROMPT_TOKENS):
            row: dict[str, Any] = {"group": each.group, "shape": each.shape, "seconds": each.seconds}
            row["kind"] = kind = model.raw["groups"][each.group]["kind"]
            row["flops_per_second"] = each.flops / each.seconds
            if self.torch is not None and kind == "linear" and each.shape[0] >= PROMPT_TOKENS:
                row["torch"] = matmul_seconds(self.torch, *each.shape)
                shares["matmul"].append(row["torch"] / each.seconds)
            elif self.torch is not None and kind == "attention" and "fold" not in each.group:
                tokens, heads, width = each.shape
                key_heads = int(model.config["num_key_value_heads"])
                row["torch"] = attention_seconds(self.torch, tokens, heads, key_heads, width)
                if row["flops_per_second"] > 0 and each.seconds > row["torch"] / 50:
                    shares["attention"].append(row["torch"] / each.seconds)
            rows.append(row)
        self.results.raw[f"kernels {model.name}"] = rows
        for name, found in shares.items():
            self.results.note(f"{name} {model.name}", min(found))
            worst = min(value for each, value in self.results.figures.items() if each.startswith(f"{name} "))
            self.results.figures[name] = worst

    def _serving(self, model: GpuModel, executor: GpuExecutor) -> None:
        time_of = time_serving(model, executor, self.bounds, self.options.seed, self.options.batch_tokens)
        self.results.note(
            f"serving {model.name}",
            time_of.bound / time_of.seconds,
            **{"seconds": time_of.seconds, "bound": time_of.bound, "steps": time_of.steps},
            **{"prompt_tokens": time_of.prompt_tokens, "answer_tokens": time_of.answer_tokens},
            tokens_per_second=time_of.answer_tokens / time_of.seconds,
        )
        # Serving took the cache that its requests need; this takes one that each user's whole context fits.
        executor.allocate_cache(USERS * blocks_of(model, 2048))
        steady = time_decoding(model, executor, USERS, STEADY_CONTEXT, 100)
        idle = max(0.0, 1 - steady.device / steady.wall)
        self.results.note(f"idle {model.name}", idle, wall=steady.wall, device=steady.device)

    def _sampling(self, model: GpuModel, executor: GpuExecutor) -> None:
        users = {count: time_sampling(model, executor, count, CONTEXT, self.options.seed) for count in SAMPLING_USERS}
        self.results.note(
            f"sampling {model.name}",
            max(each.beyond for ways in users.values() for each in ways),
            **{"context": CONTEXT, "vocabulary": executor.limits.vocab_size},
            users={str(count): [asdict(each) for each in ways] for count, ways in users.items()},
        )

    def _mixed(self, model: GpuModel, executor: GpuExecutor) -> None:
        mix = Mix()
        time_of = time_mixed(model, executor, self.options.seed, mix)
        sizes = {"users": mix.users, "prompt": mix.prompt, "chunk": mix.chunk}
        self.results.note(f"mixed {model.name}", time_of.times, **sizes, **asdict(time_of))

    def _quantized(self, name: str, dtype: str) -> None:
        model = GpuModel.read(self.options.programs / variant_of(name, dtype))
        self.results.environment.setdefault("programs", {})[model.name] = model.built
        users = time_users(model, self.bounds, self.options.seed)
        shares = {str(count): asdict(each) for count, each in users.items()}
        self.results.note(f"quantized {name}-{dtype}", users[1].share, model=name, dtype=dtype, users=shares)

    def _start(self, model: GpuModel) -> None:
        from benchmarks.gpu_start import write_weights

        with tempfile.TemporaryDirectory() as folder:
            weights = Path(folder) / "weights.safetensors"
            write_weights(model, weights, self.options.seed)
            command = [sys.executable, "-m", "benchmarks.gpu_start", str(model.folder.resolve()), str(weights)]
            best, parts = float("inf"), {}
            for _ in range(3):
                began = time.perf_counter()
                done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
                if done.returncode:
                    raise RuntimeError(done.stderr.strip().splitlines()[-1])
                if time.perf_counter() - began < best:
                    best, parts = time.perf_counter() - began, json.loads(done.stdout.splitlines()[-1])
        self.results.note(f"start {model.name}", best, **parts)

    def _rival(self) -> None:
        """transformers' answers to the requests that were served; the ratio is of generated tokens a second, so that
        a run that had to end early counts too."""
        from benchmarks.gpu_rival import best_of, time_transformers

        mine = self.results.raw.get(f"serving {RIVALLED}")
        if mine is None:
            raise RuntimeError("serving was not measured, so there is nothing to compare")
        self.torch.cuda.empty_cache()
        found = time_transformers(
            CONFIGS[RIVALLED],
            lengths_of(self.options.seed),
            self.options.seed,
            self.options.rival_seconds,
            SECONDS["peers"] - 20,
        )
        name = f"against transformers {RIVALLED}"
        self.results.raw[name] = {"tried": [asdict(each) for each in found]}
        best = best_of(found)
        self.results.note(
            name,
            mine["tokens_per_second"] / best.tokens_per_second,
            ratio_of="generated tokens a second",
            requests=USERS,
            tokens_per_second=best.tokens_per_second,
            **asdict(best),
            **{"tried": [asdict(each) for each in found], "times_of_seconds": best.seconds / mine["seconds"]},
        )


def _torch(results: Results) -> Any:
    results.failures.pop("torch", None)
    try:
        import torch
    except ImportError:
        results.failures["torch"] = "not installed: nothing is compared with cuBLAS, SDPA and transformers"
        return None
    if not torch.cuda.is_available():
        results.failures["torch"] = "it sees no GPU"
        return None
    return torch
