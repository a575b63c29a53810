"""House rules that a reader can check line by line, checked by a machine."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest
from source import ROOT, all_python_files, imports, module_name, place, source_files, tree

LONGEST_FILE = 500
READS_THE_ENVIRONMENT = {"tessera_runtime.configuration"}
ENVIRONMENT = {"environ", "environb", "getenv", "getenvb", "putenv", "unsetenv"}
UNSAFE_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}
STARTS_PROCESSES = {
    "tessera_runtime.text.chat_template",
    "tessera_runtime.server.engine_process",
    "tessera.cli.packing_cache",
    "tessera_compiler.targets.triton.toolchain",
}
"""A template is rendered in a process of its own, the only thing that can be stopped when it does not end; every
engine is one; packing before serving must leave nothing of the compiler in the process that serves; and a compiler that
ends in a crash must not take the packing with it."""

UNFINISHED = re.compile(r"\b(TODO|FIXME|XXX|HACK|NotImplementedError)\b")
# Raised by libraries, so the name may be caught. Spelled apart so that this file does not find itself.
CAUGHT = "except " + "NotImplemented" + "Error"


def calls(path: Path) -> Iterator[tuple[str, int]]:
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node.lineno


def test_there_is_source_to_check() -> None:
    assert len(source_files()) > 30
    assert len(all_python_files()) > len(source_files())


def test_files_stay_short() -> None:
    long = {
        str(path.relative_to(ROOT)): lines
        for path in all_python_files()
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > LONGEST_FILE
    }
    assert not long, f"longer than {LONGEST_FILE} lines: {long}"


def test_the_environment_is_read_in_one_place() -> None:
    wrong = [
        place(path, node.lineno)
        for path in source_files()
        if module_name(path) not in READS_THE_ENVIRONMENT
        for node in ast.walk(tree(path))
        if (isinstance(node, ast.Attribute) and node.attr in ENVIRONMENT and ast.unparse(node.value) == "os")
        or (isinstance(node, ast.ImportFrom) and node.module == "os" and any(a.name in ENVIRONMENT for a in node.names))
    ]
    assert not wrong, f"reads the environment: {wrong}"


def test_nothing_can_unpickle() -> None:
    wrong = [
        place(path, found.line) for path in source_files() for found in imports(path) if found.top in UNSAFE_MODULES
    ]
    loads = {"torch.load", "np.load", "numpy.load", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "eval", "exec"}
    wrong += [f"{place(path, line)} {name}" for path in source_files() for name, line in calls(path) if name in loads]
    assert not wrong, f"can run code from data: {wrong}"


def test_code_from_checkpoints_is_never_run() -> None:
    wrong = [
        place(path, node.lineno)
        for path in source_files()
        for node in ast.walk(tree(path))
        if isinstance(node, ast.keyword)
        and node.arg == "trust_remote_code"
        and not (isinstance(node.value, ast.Constant) and node.value.value is False)
    ]
    assert not wrong, f"may run code of a checkpoint: {wrong}"


def test_programs_are_started_in_known_places() -> None:
    starts = ("os.system", "os.popen", "os.exec", "os.spawn", "pty.")
    wrong = [
        f"{place(path, line)} {name}"
        for path in source_files()
        for name, line in calls(path)
        if name.startswith(starts)
    ]
    wrong += [
        place(path, found.line)
        for path in source_files()
        for found in imports(path)
        if found.top in {"subprocess", "multiprocessing"} and module_name(path) not in STARTS_PROCESSES
    ]
    wrong += [
        place(path, node.lineno)
        for path in source_files()
        for node in ast.walk(tree(path))
        if isinstance(node, ast.keyword) and node.arg == "shell"
    ]
    assert not wrong, f"starts a program: {wrong}"


def test_nothing_is_left_unfinished() -> None:
    wrong = []
    for path in source_files():
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if UNFINISHED.search(line) and not (CAUGHT in line or re.search(r"except \(.*NotImplementedError", line)):
                wrong.append(place(path, number))
    assert not wrong, f"left unfinished: {wrong}"


def test_users_mistakes_are_not_asserts() -> None:
    """The compiler may state its own invariants; what meets files, requests and people raises errors with a name."""
    wrong = [
        place(path, node.lineno)
        for path in source_files()
        if not module_name(path).startswith("tessera_compiler")
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Assert)
    ]
    assert not wrong, f"asserts vanish under -O; raise an error of the vocabulary: {wrong}"


def test_nothing_is_swallowed() -> None:
    wrong = [
        place(path, node.lineno)
        for path in source_files()
        for node in ast.walk(tree(path))
        if isinstance(node, ast.ExceptHandler) and node.type is None
    ]
    assert not wrong, f"bare except: {wrong}"


def test_modules_say_what_they_are_for() -> None:
    silent = [
        place(path, 1)
        for path in source_files()
        if path.name != "__init__.py" and ast.get_docstring(tree(path)) is None
    ]
    assert not silent, f"without a docstring: {silent}"


def test_init_files_are_nearly_empty() -> None:
    full = [
        str(path.relative_to(ROOT))
        for path in source_files()
        if path.name == "__init__.py" and len(tree(path).body) > 4
    ]
    assert not full, f"an __init__.py is for a docstring: {full}"


def test_tests_are_neither_skipped_nor_tied_to_this_machine() -> None:
    wrong = []
    for path in (ROOT / "tests").rglob("*.py"):
        with tokenize.open(path) as file:
            text = file.read()
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type == tokenize.NAME and token.string in {"skip", "skipif", "importorskip", "xfail"}:
                wrong.append(f"{place(path, token.start[0])} {token.string}")
            if token.type == tokenize.STRING and re.match(r"""^[rbuf]*["']+/(work|root|home)/""", token.string):
                wrong.append(f"{place(path, token.start[0])} {token.string}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("name", ["tessera", "tessera_compiler", "tessera_pack", "tessera_runtime"])
def test_every_folder_of_modules_is_a_package(name: str) -> None:
    folders = {path.parent for path in (ROOT / name).rglob("*.py")}
    without = [str(folder.relative_to(ROOT)) for folder in folders if not (folder / "__init__.py").is_file()]
    assert not without, f"no __init__.py in {without}"
