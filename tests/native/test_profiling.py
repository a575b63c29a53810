"""What an object says of time: its timeline and its probes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from object_files import object_with

from tessera_compiler.targets.cpu.object_code import CPU_CLASSES
from tessera_compiler.targets.cpu.probes import KINDS, PROBE, READ_BYTES, add_probe
from tessera_compiler.targets.cpu.step_protocol import EXPORTS
from tessera_runtime.errors import TargetUnavailable
from tessera_runtime.executor.cpu.memory import address_of, zeroed_memory
from tessera_runtime.executor.cpu.native_object import NativeObject
from tessera_runtime.executor.cpu.object_check import check_object
from tessera_runtime.executor.cpu.peaks import measure_peaks
from tessera_runtime.executor.cpu.processor import choose_class, machine_of_class, read_processor
from tessera_runtime.executor.cpu.timeline import Timeline


def object_with_probe(name: str) -> bytes:
    return object_with(name, PROBE, add_probe)


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> NativeObject:
    name = choose_class({n: {"features": e.required_flags} for n, e in CPU_CLASSES.items()}, read_processor())
    path: Path = tmp_path_factory.mktemp("probe") / f"{name}.so"
    path.write_bytes(object_with_probe(name))
    return NativeObject(path, machine_of_class(name), [*EXPORTS, PROBE])


@pytest.mark.parametrize("name", list(CPU_CLASSES))
def test_every_class_has_probes(name: str) -> None:
    found = check_object(object_with_probe(name), machine_of_class(name), [*EXPORTS, PROBE])
    assert PROBE in found.symbols


def test_probes_say_what_they_did(native: NativeObject) -> None:
    memory = zeroed_memory(1 << 20)
    assert native.probe is not None
    read = KINDS.index("read")
    assert native.probe(read, 3, address_of(memory), 16 * READ_BYTES) == 3 * 16 * READ_BYTES
    for kind in range(1, len(KINDS)):
        once = native.probe(kind, 1, address_of(memory), 0)
        assert once > 0 and native.probe(kind, 7, address_of(memory), 0) == 7 * once
    assert native.probe(len(KINDS), 5, address_of(memory), 0) == 0


def test_reading_reads_everything(native: NativeObject) -> None:
    """What is read is combined with `or` and stored: a bit anywhere must show."""
    assert native.probe is not None
    for line in range(0, 32 * READ_BYTES, 64 * 37):
        memory = zeroed_memory(32 * READ_BYTES)
        memory[line + 5] = 9
        native.probe(KINDS.index("read"), 1, address_of(memory), 32 * READ_BYTES)
        assert memory[5] == 9


def test_peaks_are_measured(native: NativeObject) -> None:
    peaks = measure_peaks(native, 1, [])
    assert peaks.memory_bytes_s > 0 and peaks.cached_bytes_s > 0
    assert set(peaks.multiply_adds_s) == {"f32", "bf16", "u8"}
    assert all(rate > 0 for rate in peaks.multiply_adds_s.values())


def test_older_objects_have_no_probe(open_toy, batch_of) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(TargetUnavailable, match="earlier version"):
        open_toy(1).measure_peaks()


def test_ticks_become_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    timeline = Timeline(2)
    ticks = np.ctypeslib.as_array((np.ctypeslib.ctypes.c_int64 * 3).from_address(timeline.address))
    clock = iter([10.0, 11.0, 12.0])
    monkeypatch.setattr("tessera_runtime.executor.cpu.timeline.time.perf_counter", lambda: next(clock))
    # A thousand ticks a second; the first step is slower, and not counted.
    for start, middle, end in ((0, 300, 400), (1000, 1100, 1400), (2000, 2200, 2400)):
        ticks[:] = [start, middle, end]
        timeline.note_step()
    np.testing.assert_allclose(timeline.seconds(), [[0.1, 0.3], [0.2, 0.2]])
