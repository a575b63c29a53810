"""Which class a machine gets, and how many cores it may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tessera_compiler.targets.cpu.object_code import CPU_CLASSES
from tessera_runtime.errors import TargetUnavailable
from tessera_runtime.executor.cpu.processor import Processor, choose_class, cpu_quota, read_processor, usable_cores

CLASSES = {name: {"features": list(entry.required_flags)} for name, entry in CPU_CLASSES.items()}


def test_the_best_class_that_runs_is_chosen():
    v3, v4 = (set(CLASSES[name]["features"]) for name in ("x86-64-v3", "x86-64-v4"))
    assert choose_class(CLASSES, Processor("x86_64", frozenset(v3 | v4 | {"sse"}))) == "x86-64-v4"
    assert choose_class(CLASSES, Processor("x86_64", frozenset(v4 - {"avx512_bf16"}))) == "x86-64-v3"
    assert choose_class(CLASSES, Processor("aarch64", frozenset(CLASSES["aarch64"]["features"]))) == "aarch64"


def test_no_class_is_an_error_that_helps():
    with pytest.raises(TargetUnavailable, match=r"this machine is riscv64.*tessera pack … --target cpu"):
        choose_class(CLASSES, Processor("riscv64", frozenset()))
    with pytest.raises(TargetUnavailable, match=r"x86-64-v3 \(this machine lacks f16c\)"):
        features = frozenset(CLASSES["x86-64-v3"]["features"]) - {"f16c"}
        choose_class({"x86-64-v3": CLASSES["x86-64-v3"]}, Processor("x86_64", features))


def test_features_are_those_all_cores_have(tmp_path: Path):
    path = tmp_path / "cpuinfo"
    path.write_text("processor : 0\nflags\t\t: fpu avx2 fma\n\nprocessor : 1\nflags\t\t: fpu avx2\n")
    assert read_processor(path).features == {"fpu", "avx2"}
    path.write_text("processor : 0\nFeatures\t: fp asimd\n")
    assert read_processor(path).features == {"fp", "asimd"}
    assert read_processor(tmp_path / "nothing").features == frozenset()


def test_cores_are_those_the_scheduler_allows():
    cores = usable_cores()
    assert cores and set(cores) <= os.sched_getaffinity(0)


@pytest.mark.parametrize(
    ("groups", "files", "quota"),
    [
        ("0::/\n", {}, None),
        ("0::/a/b\n", {"a/b/cpu.max": "150000 100000", "a/cpu.max": "max 100000"}, 1.5),
        ("0::/a/b\n", {"a/b/cpu.max": "400000 100000", "a/cpu.max": "200000 100000"}, 2.0),
        ("0::/a\n", {"a/cpu.max": "max 100000"}, None),
        (
            "3:cpu,cpuacct:/x\n",
            {"cpu,cpuacct/x/cpu.cfs_quota_us": "50000", "cpu,cpuacct/x/cpu.cfs_period_us": "100000"},
            0.5,
        ),
        ("3:cpu:/x\n", {"cpu/x/cpu.cfs_quota_us": "-1", "cpu/x/cpu.cfs_period_us": "100000"}, None),
        ("4:memory:/x\n", {"memory/x/cpu.max": "1 100000"}, None),
    ],
)
def test_quota_of_control_groups(tmp_path: Path, groups: str, files: dict[str, str], quota: float | None):
    (tmp_path / "groups").write_text(groups)
    for name, text in files.items():
        path = tmp_path / "root" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    assert cpu_quota(tmp_path / "groups", tmp_path / "root") == quota
