"""`inspect`, `plan`, `verify` and `version`."""

from __future__ import annotations

import copy
import hashlib
import re
import shutil
from pathlib import Path
from typing import Any, NoReturn

import msgspec
import pytest
from ended import Run
from tiny_package import tiny_program, write_tiny

from tessera.cli.commands.plan_command import PROCESS_BYTES, make_plan
from tessera.cli.device_kernels import schedule
from tessera_runtime.errors import DriverUnavailable, TargetUnavailable, TesseraError
from tessera_runtime.executor.gpu import discovery
from tessera_runtime.loading import load_executor
from tessera_runtime.package.manifest import (
    ArenaMemory,
    DeviceMemory,
    FileEntry,
    KvMemory,
    Target,
    write_manifest,
)
from tessera_runtime.package.program_check import check_arena, check_cache, check_kernels, check_launches, check_weights
from tessera_runtime.package.reader import open_package


def test_inspect_shows_everything_without_reading_the_contents(run: Run, package: Path) -> None:
    shown = run("inspect", package)
    assert (shown.code, shown.err) == (0, "")
    assert re.search(r"weights +25\.\d KiB of f32, [\d.]+ KiB of u8", shown.out)
    for word in ("tiny 1.0.0", "LlamaForCausalLM", "Kernels of target reference", "embed", "Evidence", "(budget 0.01)"):
        assert word in shown.out
    value = run("inspect", package, "--json").json
    assert list(value) == ["package", "manifest", "kernels"]
    assert value["manifest"]["name"] == "tiny"
    head = next(kernel for kernel in value["kernels"]["reference"] if kernel["group"] == "head")
    assert head == {"group": "head", "kind": "linear", "tuned": [], "launches": 1, "variants": {}}


def test_inspect_says_for_which_classes_a_schedule_was_measured() -> None:
    classes = ("x86-64-v3", "x86-64-v4")
    said = [schedule(tuned, classes) for tuned in (["x86-64-v4"], [*classes], [], None, True, False)]
    assert said == ["tuned for x86-64-v4", "tuned", "default", "-", "tuned", "default"]


@pytest.mark.parametrize("ir", ["graph", "schedule", "tile"])
def test_inspect_prints_an_ir_as_it_is(run: Run, package: Path, ir: str) -> None:
    texts = {"graph": "builtin.module {}\n", "schedule": "schedule.module {}\n", "tile": "tile.module {}\n"}
    assert run("inspect", package, "--ir", ir) == (0, texts[ir], "")
    assert run("inspect", package, "--ir", ir, "--json").json["text"] == texts[ir]


def test_plan_says_how_many_users_fit(run: Run, package: Path) -> None:
    plan = run("plan", package, "--memory", "256MiB", "--json").json
    assert plan["weights_bytes"] == 32_768
    assert plan["activations_bytes"] == 8 * (64 + 1664)
    assert plan["kv_bytes_per_token"] == 128
    left = (256 << 20) - 32_768 - 8 * 1728 - PROCESS_BYTES
    assert plan["users"] == [{"tokens": 64, "users": left // 8192, "bytes_per_user": 8192}]
    assert plan["fits"] is True
    shown = run("plan", package, "--memory", "256MiB")
    assert "256.0 MiB" in shown.out and f"{left // 8192:,}" in shown.out
    small = run("plan", package, "--memory", "1MiB")
    assert small.code == 0 and "does not fit" in small.out
    assert run("plan", package, "--json").json["memory_bytes"] > 1 << 28


def test_plan_lists_lengths_up_to_the_context(package: Path) -> None:
    memory = open_package(package).manifest.memory
    long = msgspec.structs.replace(memory, max_model_len=8192)
    assert [row["tokens"] for row in make_plan(long, 1 << 33)["users"]] == [512, 2048, 8192]
    longer = msgspec.structs.replace(memory, max_model_len=10_000)
    assert [row["tokens"] for row in make_plan(longer, 1 << 33)["users"]] == [512, 2048, 8192, 10_000]


def say_there_is_a_gpu_target(package: Path, *, with_its_memory: bool = True) -> None:
    manifest = open_package(package, verify="sizes").manifest
    program = package / "tile_kernels" / "cuda-sm90" / "program.json"
    program.parent.mkdir(parents=True)
    program.write_text("{}")
    entry = FileEntry(path="tile_kernels/cuda-sm90/program.json", size=2, sha256=hashlib.sha256(b"{}").hexdigest())
    memory = DeviceMemory(
        weights_bytes=1 << 20,
        arena=ArenaMemory(bytes=1 << 20, bytes_per_token=1024, bytes_per_logit_row=1024),
        kv=KvMemory(block_tokens=64, bytes_per_block=1 << 16, bytes_per_token=1 << 10),
    )
    changed = msgspec.structs.replace(
        manifest,
        targets=(*manifest.targets, Target(name="cuda-sm90", abi=2, classes=())),
        memory=msgspec.structs.replace(manifest.memory, devices={"cuda-sm90": memory} if with_its_memory else {}),
        files=tuple(sorted([*manifest.files, entry], key=lambda each: each.path)),
    )
    (package / "manifest.yaml").write_bytes(write_manifest(changed))


def test_plan_for_a_gpu_counts_what_lies_on_it(
    run: Run, package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = Path(shutil.copytree(package, tmp_path / "copy.tspkg"))
    say_there_is_a_gpu_target(package)
    plan = run("plan", package, "--target", "cuda-sm90", "--memory", "16MiB", "--json").json
    assert (plan["weights_bytes"], plan["activations_bytes"]) == (1 << 20, (1 << 20) + 8 * 2048)
    assert plan["cache_bytes"] == int(((14 << 20) - 8 * 2048) * 0.92)
    assert plan["users"] == [{"tokens": 64, "users": plan["cache_bytes"] >> 16, "bytes_per_user": 1 << 16}]
    missing = run("plan", package, "--target", "cuda-sm80", "--memory", "16MiB")
    assert missing.code != 0 and "has no target 'cuda-sm80'" in missing.err

    def no_driver(family: str) -> NoReturn:
        raise DriverUnavailable(f"no driver of {family}")

    monkeypatch.setattr(discovery, "open_driver", no_driver)
    nowhere = run("plan", package, "--target", "cuda-sm90")
    assert nowhere.code != 0 and "no device that runs cuda-sm90" in nowhere.err and "--memory" in nowhere.err


def test_plan_for_a_gpu_never_counts_this_machines_memory_instead(run: Run, package: Path, tmp_path: Path) -> None:
    package = Path(shutil.copytree(package, tmp_path / "copy.tspkg"))
    say_there_is_a_gpu_target(package, with_its_memory=False)
    ended = run("plan", package, "--target", "cuda-sm90", "--memory", "16MiB")
    assert ended.code != 0 and "does not say what cuda-sm90 takes" in ended.err and "Pack the model again" in ended.err


def test_verify_passes_a_sound_package(run: Run, package: Path) -> None:
    ended = run("verify", package, "--json")
    assert (ended.code, ended.err) == (0, "")
    value = ended.json
    assert value["ok"] is True and value["evidence"] is None
    names = [check["name"] for check in value["checks"]]
    assert names[:3] == ["files", "reference: abi", "reference: weights"] and names[-1] == "tokenizer"
    assert all(check["ok"] for check in value["checks"])
    shown = run("verify", package)
    assert shown.code == 0 and "is sound" in shown.out


def test_verify_looks_into_native_objects(run: Run, tmp_path: Path) -> None:
    package = write_tiny(tmp_path / "p.tspkg", programs={"cpu": tiny_program("cpu")})
    ended = run("verify", package, "--json")
    assert ended.code == 1
    failed = [check for check in ended.json["checks"] if not check["ok"]]
    assert [check["name"] for check in failed] == ["cpu: objects"]
    assert "x86-64-v3" in failed[0]["detail"]
    shown = run("verify", package)
    assert shown.code == 1 and shown.err == "" and "FAIL  cpu: objects" in shown.out


def test_verify_finds_a_file_too_many_and_no_package(run: Run, package: Path, tmp_path: Path) -> None:
    copied = tmp_path / "copy.tspkg"
    shutil.copytree(package, copied)
    copied.chmod(0o755)
    (copied / "extra").write_text("x")
    ended = run("verify", copied, "--json")
    assert ended.code == 1 and "extra" in ended.json["checks"][0]["detail"]
    assert run("verify", tmp_path / "nothing").code == 2


def test_a_program_that_does_not_hang_together_is_found(tmp_path: Path, run: Run) -> None:
    program = tiny_program()
    program["arena"]["bytes_per_token"] = 128
    ended = run("verify", write_tiny(tmp_path / "p.tspkg", programs={"reference": program}), "--json")
    failed = [check["name"] for check in ended.json["checks"] if not check["ok"]]
    assert ended.code == 1 and failed == ["reference: memory plan"]


def change(program: dict[str, Any], path: str, value: Any) -> None:
    *parents, last = [int(part) if part.isdigit() else part for part in path.split("/")]
    holder: Any = program
    for part in parents:
        holder = holder[part]
    if value is DELETE:
        del holder[last]
    else:
        holder[last] = value


DELETE = object()
MISTAKES = [
    ("launches/0/group", "nothing", "launches the group 'nothing'"),
    ("launches/2/group", "embed", "'head' is never launched"),
    ("launches/0/args/1", "weight:2", "'weight:2', which names nothing"),
    ("launches/0/args/2", "buffer:3", "'buffer:3', which names nothing"),
    ("launches/0/args/3", "cache_key:1", "'cache_key:1', which names nothing"),
    ("launches/0/args/0", "input:time", "'input:time', which names nothing"),
    ("launches/0/args/0", "buffer:-1", "'buffer:-1', which names nothing"),
    ("output", 3, "names buffer 3"),
    ("weights/0/name", "absent", "'absent', which is not among the weights"),
    ("weights/0/shape", [400, 17], "should be f32 \\[400, 32\\] but is f32 \\[400, 16\\]"),
    ("weights/0/dtype", "bf16", "should be bf16"),
    ("weights/1/layout", "panels_k2", "should be u8"),
    ("weights/1/layout", "spiral", "spiral"),
    ("buffers/1/offset/tokens", 32, "0 and 1 are alive together and overlap"),
    ("buffers/2/offset/logit_rows", 0, "1 and 2 are alive together and overlap"),
    ("buffers/2/offset/logit_rows", 128, "2 leaves the arena"),
    ("buffers/0/row_bytes", 60, "buffers\\[0\\]"),
    ("buffers/0/rows", "S", "buffers\\[0\\]"),
    ("cache/layers/0/value_offset", 512, "Layer 0 of the cache"),
    ("cache/layers/0/heads", 2, "Layer 0 of the cache"),
    ("cache/layers/0/dtype", "f8", "unknown dtype"),
    ("classes/x86-64-v3/kernels/head", DELETE, "differ in 'head'"),
    ("classes/x86-64-v3/kernels/head", [], "has no kernel"),
    ("classes/x86-64-v3/kernels/head/1/max_tokens", 6, "more than 6 tokens"),
    ("classes/x86-64-v3/kernels/head/1/max_tokens", 4, "out of order"),
    ("classes/x86-64-v3/kernels/head/0/grid/0", "S", "grid entry 'S'"),
    ("classes", {}, "no CPU class"),
]


def check_all(program: dict[str, Any], package: Path) -> None:
    check_weights(program, open_package(package).weights().entries)
    check_launches(program, len(program["cache"]["layers"]))
    check_kernels(program)
    check_arena(program)
    check_cache(program)


@pytest.mark.parametrize(("path", "value", "message"), MISTAKES)
def test_each_mistake_in_a_program_is_found(path: str, value: Any, message: str, package: Path) -> None:
    program = tiny_program("cpu")
    check_all(program, package)
    spoiled = copy.deepcopy(program)
    change(spoiled, path, value)
    with pytest.raises(TesseraError, match=message):
        check_all(spoiled, package)


CACHE_OF_BYTES = {
    **{"layer": 0, "heads": 2, "key_dim": 18, "value_dim": 17, "dtype": "i8", "head_bytes": 960},
    **{"key_offset": 64, "key_scale_offset": 384, "value_scale_offset": 448, "value_offset": 512},
}


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("heads", 3, "leaves its block"),
        ("head_bytes", 704, "leaves a head of 704 bytes"),
        ("head_bytes", 970, "no multiple of 64"),
        ("key_scale_offset", 320, "overlaps another"),
        ("value_scale_offset", 450, "Layer 0"),
        ("value_offset", 0, "Layer 0"),
    ],
)
def test_each_mistake_in_a_cache_of_bytes_is_found(key: str, value: int, message: str) -> None:
    program = tiny_program("cpu")
    program["cache"]["layers"] = [dict(CACHE_OF_BYTES)]
    program["launches"][0]["args"][3] = "cache_value_scale:0"
    check_cache(program)
    check_launches(program, 1)
    program["cache"]["layers"][0][key] = value
    with pytest.raises(TesseraError, match=message):
        check_cache(program)
    program["cache"]["layers"][0]["dtype"] = "bf16"
    with pytest.raises(TesseraError, match="'cache_value_scale:0', which names nothing"):
        check_launches(program, 1)


def test_buffers_that_do_not_live_together_may_share_memory(package: Path) -> None:
    program = tiny_program("cpu")
    program["buffers"][2]["offset"] = {"tokens": 0, "logit_rows": 0, "bytes": 0}
    program["launches"][1]["args"] = ["buffer:0", "buffer:1"]
    program["buffers"][1]["offset"] = {"tokens": 64, "logit_rows": 1600, "bytes": 0}
    check_all(program, package)


def test_a_target_the_package_or_the_runtime_lacks_is_named(package: Path, tmp_path: Path) -> None:
    with pytest.raises(TargetUnavailable, match="'cpu'"):
        load_executor(open_package(package), target="cpu")


def test_version_names_what_it_reads(run: Run) -> None:
    value = run("version", "--json").json
    assert list(value) == ["tessera", "formats", "abis", "gpu_abis", "python", "machine"]
    assert value["abis"] == [1, 2, 3] and value["gpu_abis"] == [2]
    assert "package formats read" in run("version").out
