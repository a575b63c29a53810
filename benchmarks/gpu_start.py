"""From the start of a process to its first token: `python -m benchmarks.gpu_start FOLDER WEIGHTS`.

Prints the seconds of each part as JSON. Run in a new process each time.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np

from benchmarks.gpu_models import GpuModel, RandomSource

PROMPT = 128
BLOCKS = 256


def write_weights(model: GpuModel, path: Path, seed: int) -> None:
    """Random weights as a safetensors file of plain bytes."""
    source = RandomSource(model, seed)
    header, end = {}, 0
    for weight in model.program.weights:
        header[weight.name] = {"dtype": "U8", "shape": [weight.size], "data_offsets": [end, end + weight.size]}
        end += weight.size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 64)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for weight in model.program.weights:
            for start in range(0, weight.size, 64 << 20):
                piece = np.empty(min(64 << 20, weight.size - start), np.uint8)
                source.read_into(piece, weight.name, start)
                file.write(piece.data)


def main(arguments: list[str]) -> int:
    began = time.perf_counter()
    from benchmarks.gpu_measure import prompt_batch
    from tessera_runtime.executor.cuda.driver import open_cuda_driver
    from tessera_runtime.executor.gpu.executor import GpuExecutor
    from tessera_runtime.executor.gpu.weights import FileSource
    from tessera_runtime.package.safetensors_reader import SafetensorsFile

    seconds = {}

    def lap(name: str) -> None:
        nonlocal began
        now = time.perf_counter()
        seconds[name], began = now - began, now

    model = GpuModel.read(Path(arguments[0]))
    lap("imports and program")
    driver = open_cuda_driver()
    lap("driver")
    source = FileSource(SafetensorsFile(Path(arguments[1])))
    executor = GpuExecutor(driver, model.program, model.folder, source)
    lap("weights")
    executor.allocate_cache(BLOCKS)
    executor.allocate_seats(1)
    lap("cache and graphs")
    executor.step(prompt_batch(model, PROMPT))
    lap("first token")
    executor.close()
    print(json.dumps(seconds))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
