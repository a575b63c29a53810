"""fp32 safetensors shards whose tensors may be written in any order, so that none has to wait in memory."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import TracebackType
from typing import IO

import numpy as np
from numpy.typing import NDArray

SHARD_BYTES = 4_000_000_000


class ShardWriter:
    """Writes tensors of known shapes into `model.safetensors`, or into several shards with an index.

    Files have their final size from the start. Leaving the `with` block closes them and writes the index.
    """

    def __init__(self, directory: Path, shapes: dict[str, tuple[int, ...]], shard_bytes: int = SHARD_BYTES) -> None:
        self._directory = directory
        self._files: list[IO[bytes]] = []
        self._places: dict[str, tuple[int, int]] = {}
        self._missing = dict.fromkeys(shapes)
        shards: list[dict[str, tuple[int, ...]]] = [{}]
        filled = 0
        for name, shape in shapes.items():
            size = 4 * int(np.prod(shape, dtype=np.int64))
            if shards[-1] and filled + size > shard_bytes:
                shards.append({})
                filled = 0
            shards[-1][name] = shape
            filled += size
        self._names = (
            ["model.safetensors"]
            if len(shards) == 1
            else [f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
        )
        try:
            for index, shard in enumerate(shards):
                self._start(index, shard)
        except BaseException:
            self._close()
            raise

    def write(self, name: str, values: NDArray[np.float32]) -> None:
        """Puts a tensor where it belongs; it must have the shape that was announced."""
        index, offset = self._places[name]
        file = self._files[index]
        file.seek(offset)
        file.write(np.ascontiguousarray(values, dtype="<f4").data)
        self._missing.pop(name, None)

    def missing(self) -> list[str]:
        """The tensors that have not been written yet."""
        return list(self._missing)

    def _start(self, index: int, shard: dict[str, tuple[int, ...]]) -> None:
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        offset = 0
        for name, shape in shard.items():
            size = 4 * int(np.prod(shape, dtype=np.int64))
            header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [offset, offset + size]}
            self._places[name] = (index, offset)
            offset += size
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        start = 8 + len(text)
        for name in shard:
            self._places[name] = (index, start + self._places[name][1])
        # Closed by _close(): the files live as long as the writer, not as long as this call.
        file = open(self._directory / self._names[index], "wb")  # noqa: SIM115
        self._files.append(file)
        file.write(len(text).to_bytes(8, "little") + text)
        file.flush()
        os.posix_fallocate(file.fileno(), 0, start + offset)

    def _close(self) -> None:
        for file in self._files:
            file.close()

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()
        if kind is None and len(self._names) > 1:
            index = {name: self._names[place[0]] for name, place in self._places.items()}
            total = sum(path.stat().st_size for path in map(self._directory.joinpath, self._names))
            text = json.dumps({"metadata": {"total_size": total}, "weight_map": index}, indent=2)
            (self._directory / "model.safetensors.index.json").write_text(text + "\n", encoding="utf-8")
