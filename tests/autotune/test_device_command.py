"""`tessera autotune --target cuda-sm90`: what it keeps, finds again, and refuses. The device is a fake."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from device_trials import TARGET, StandInCompilation
from fake_driver import FakeDriver

from benchmarks.gpu_models import TINY, write_config
from tessera.cli.main import main
from tessera_compiler.autotune import device_trial, device_tuner
from tessera_compiler.autotune.device_candidates import device_candidates
from tessera_compiler.schedule import device_tuned_cache
from tessera_compiler.schedule.device_blocking import DeviceBlocking
from tessera_compiler.schedule.device_tuned_cache import read_device_tuned
from tessera_compiler.targets.triton import toolchain
from tessera_runtime.errors import DriverUnavailable
from tessera_runtime.executor.gpu import opening
from tessera_runtime.executor.gpu.driver import Device

H200 = Device("Fake H200", "cuda", (9, 0), "sm90", 32, 1 << 30, 132, 232_448, 13000)


class AnyParameters(dict[str, tuple[str, ...]]):
    """Kernels that are launched and not looked at."""

    def __missing__(self, entry: str) -> tuple[str, ...]:
        return ()


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return write_config(TINY, tmp_path / "configs")


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> list[FakeDriver]:
    """A host with Triton and a device; two candidates at three points, so that tuning is a matter of seconds."""
    opened: list[FakeDriver] = []

    def open_driver(family: str) -> FakeDriver:
        opened.append(FakeDriver(AnyParameters(), device=H200, poison=False))
        return opened[-1]

    def two(*arguments: Any) -> tuple[DeviceBlocking, ...]:
        return device_candidates(*arguments)[:2]

    monkeypatch.setattr(toolchain, "triton_is_installed", lambda: True)
    monkeypatch.setattr(opening, "open_driver", open_driver)
    monkeypatch.setattr(device_trial, "Compilation", StandInCompilation)
    monkeypatch.setattr(device_trial, "MOST_COPIES", 2)
    monkeypatch.setattr(device_tuner, "device_candidates", two)
    monkeypatch.setattr(device_tuner, "points_of", lambda rows: (1, 64, 256))
    return opened


@pytest.fixture
def ended(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(["autotune", *(str(argument) for argument in arguments)])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return code, captured.out, captured.err

    return run


def test_a_second_run_is_all_hits(
    config: Path, tmp_path: Path, host: list[FakeDriver], ended: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    options = (config, "--target", TARGET, "--cache", cache)
    code, out, _ = ended(*options, "--explain")
    path = cache / TARGET / "fake-h200.json"
    entries = read_device_tuned(path, TARGET)
    assert code == 0 and len(entries) == 5
    for key, entry in entries.items():
        assert f"{key}: " in out and set(entry.microseconds) == {1, 64, 256}
    assert out.count("rows: default") == 15 and f"kept in {path}" in out
    assert not host[0].left_over() and host[0].closed
    text = path.read_text()
    code, out, _ = ended(*options)
    assert code == 0 and "All 5 kernels" in out and "nothing was measured" in out and path.read_text() == text
    lines = text.splitlines()
    path.write_text("\n".join([lines[0], *lines[2:]]) + "\n")
    code, out, _ = ended(*options, "--json")
    found = json.loads(out)
    assert sorted(kernel["state"] for kernel in found["kernels"]) == ["hit"] * 4 + ["measured"]
    assert path.read_text() == text
    monkeypatch.setattr(device_tuned_cache, "KERNELS", 2)
    assert ended(*options)[0] == 0 and path.read_text().count('"kernels": 2') == 5


def test_the_device_must_be_there(
    config: Path, tmp_path: Path, host: list[FakeDriver], ended: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, _, err = ended(config, "--target", "cuda-sm80", "--cache", tmp_path)
    assert code == 2 and "Fake H200, which is cuda-sm90 and cannot tell what is fast on cuda-sm80" in err
    assert host[0].closed

    def nothing(family: str) -> FakeDriver:
        raise DriverUnavailable("There is no NVIDIA driver on this machine.")

    monkeypatch.setattr(opening, "open_driver", nothing)
    code, _, err = ended(config, "--target", TARGET, "--cache", tmp_path)
    assert code == 2 and "can only be measured on one: There is no NVIDIA driver" in err and err.count("error:") == 1


def test_triton_must_be_there(config: Path, ended: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toolchain, "triton_is_installed", lambda: False)
    code, _, err = ended(config, "--target", TARGET)
    assert code == 2 and "Candidates are compiled by Triton, which is not installed" in err


@pytest.mark.parametrize(
    ("options", "said"), [(("--dtype", "int3"), "should be one of fp32"), (("--budget", "1s"), "not enough to measure")]
)
def test_bad_options(config: Path, host: list[FakeDriver], ended: Any, options: tuple[str, ...], said: str) -> None:
    code, _, err = ended(config, "--target", TARGET, *options)
    assert code == 2 and said in err and err.count("error:") == 1
