"""How commands fail: exit code, stderr and, with --json, the object on stdout."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ended import Run
from tiny_package import tiny_program, write_tiny
from toy_executor import ToyExecutor

from tessera.cli import running
from tessera_compiler.errors import UnsupportedOperation
from tessera_pack.errors import DiskFull, EvidenceFailed
from tessera_runtime.errors import NumericalError
from tessera_runtime.package.manifest import Source

USAGE = [
    ("foo", "error: No such command 'foo'.\nhint: Try `tessera --help`.\n"),
    (
        "generate P",
        "error: Give exactly one of --prompt, --prompt-ids and --chat.\nhint: Try `tessera generate --help`.\n",
    ),
    (
        "generate P --prompt a --chat b",
        "error: Give exactly one of --prompt, --prompt-ids and --chat.\nhint: Try `tessera generate --help`.\n",
    ),
    (
        "generate P --prompt-ids [1.5]",
        "error: --prompt-ids must be a JSON list of integers, such as '[1, 2]'.\n"
        "hint: Try `tessera generate --help`.\n",
    ),
    ("generate P --prompt a --temperature 3", "error: temperature must be a number from 0 to 2, not 3.0.\n"),
    ("generate P --prompt a --top-p 0", "error: top_p must be a number above 0 to 1, not 0.0.\n"),
    ("generate P --prompt-ids []", "error: The prompt has no tokens.\nhint: Give at least one token.\n"),
    ("generate P --prompt-ids [400]", "error: Token id 400 is not one of the model's, which are 0 to 399.\n"),
    (
        "generate /nowhere --prompt a",
        "error: There is no package at '/nowhere': it does not exist.\n",
    ),
    (
        "plan P --memory 8GiBs",
        "error: Invalid value for '--memory': expected a size such as 512MiB or 8GB, found '8GiBs'.\n"
        "hint: Try `tessera plan --help`.\n",
    ),
    ("pack --out x", "error: Give exactly one of --from-hf and --from-gguf.\nhint: Try `tessera pack --help`.\n"),
    (
        "pack --out x --from-hf y --dtype fp64",
        "error: Invalid value for '--dtype': 'fp64' is not one of 'fp32', 'bf16', 'fp16', 'int8', 'fp8', 'int4'.\n"
        "hint: Try `tessera pack --help`.\n",
    ),
    (
        "eval P --text /nowhere",
        "error: Invalid value for '--text': File '/nowhere' does not exist.\nhint: Try `tessera eval --help`.\n",
    ),
]


@pytest.mark.parametrize(("line", "stderr"), USAGE, ids=[line for line, _ in USAGE])
def test_bad_input_is_one_sentence_and_exit_code_2(
    line: str, stderr: str, run: Run, package: Path, toy: ToyExecutor
) -> None:
    arguments = [str(package) if word == "P" else word for word in line.split()]
    assert run(*arguments) == (2, "", stderr)
    ended = run(*arguments, "--json")
    assert (ended.code, ended.err) == (2, stderr)
    assert list(ended.json) == ["error"] and list(ended.json["error"]) == ["code", "message"]
    assert ended.json["error"]["message"] in stderr.replace("\nhint:", "").replace("error: ", "")


@pytest.mark.parametrize(
    ("error", "exit_code", "code", "stderr"),
    [
        (NumericalError("NaN.", hint="Verify it."), 2, "numerical-error", "error: NaN.\nhint: Verify it.\n"),
        (DiskFull("The disk is full."), 2, "disk-full", "error: The disk is full.\n"),
        (EvidenceFailed("Layer 3 differs."), 1, "evidence-failed", "error: Layer 3 differs.\n"),
        (UnsupportedOperation("aten.foo."), 2, None, "error: aten.foo.\n"),
        (FileNotFoundError(2, "No such file", "/a/b"), 2, "system-error", "error: /a/b: No such file.\n"),
        (KeyboardInterrupt(), 130, "interrupted", "error: Interrupted.\n"),
        (
            MemoryError(),
            2,
            "out-of-memory",
            "error: This needs more memory than the machine gives.\n"
            "hint: See `tessera plan` for what a package needs.\n",
        ),
        (
            ZeroDivisionError("division by zero"),
            70,
            "internal-error",
            "error: Internal error, ZeroDivisionError: division by zero.\n"
            "hint: This is a defect of Tessera. Set TESSERA_LOG=debug to see where it happened.\n",
        ),
    ],
)
def test_every_kind_of_error_has_its_exit_code(
    error: BaseException,
    exit_code: int,
    code: str | None,
    stderr: str,
    run: Run,
    package: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*arguments: Any, **options: Any) -> None:
        raise error

    monkeypatch.setattr(running, "load_executor", fail)
    assert run("generate", package, "--prompt", "a") == (exit_code, "", stderr)
    ended = run("generate", package, "--prompt", "a", "--json")
    assert (ended.code, ended.err) == (exit_code, stderr)
    found = ended.json["error"]["code"]
    assert found == code if code is not None else found.startswith("unsupported-op")


def test_a_traceback_is_shown_to_those_who_ask(
    package: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tessera.cli.main import main

    monkeypatch.setenv("TESSERA_LOG", "debug")
    monkeypatch.setattr(running, "load_executor", lambda *arguments, **options: 1 / 0)
    assert main(["generate", str(package), "--prompt", "a"]) == 70
    assert "Traceback" in capsys.readouterr().err


def test_a_wrong_environment_is_bad_input(
    run: Run, package: Path, toy: ToyExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TESSERA_THREADS", "many")
    ended = run("generate", package, "--prompt", "a")
    assert ended == (2, "", "error: TESSERA_THREADS must be a number from 1 to 64, not 'many'.\n")


def test_a_package_that_was_altered_is_not_run_and_fails_verification(
    run: Run, package: Path, toy: ToyExecutor, tmp_path: Path
) -> None:
    copy = tmp_path / "copy.tspkg"
    shutil.copytree(package, copy)
    target = copy / "tokenizer" / "tokenizer.json"
    target.chmod(0o644)
    content = bytearray(target.read_bytes())
    content[100] ^= 1
    target.write_bytes(content)
    ended = run("generate", copy, "--prompt", "a", "--json")
    assert ended.code == 2 and ended.json["error"]["code"] == "digest-mismatch"
    assert "tokenizer/tokenizer.json" in ended.err
    verified = run("verify", copy, "--json")
    assert verified.code == 1 and verified.json["ok"] is False


def test_a_reader_that_leaves_early_is_no_error(package: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "tessera", "inspect", str(package)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    error = process.stderr.read()
    process.stderr.close()
    assert process.wait(30) == 141
    assert error == b""


def test_control_characters_of_a_package_do_not_reach_the_terminal(run: Run, tmp_path: Path) -> None:
    source = Source(kind="huggingface", id="evil\x1b[2J", config_sha256="0" * 64)
    program = tiny_program()
    program["groups"]["[red]group\x1b"] = program["groups"]["head"]
    ended = run("inspect", write_tiny(tmp_path / "p.tspkg", programs={"reference": program}, source=source))
    assert "[red]group" in ended.out
    assert "\x1b" not in ended.out and "evil" in ended.out
