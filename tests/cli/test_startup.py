"""What the command imports, and how fast it answers."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

NEVER_WHEN_RUNNING = {
    *("torch", "transformers", "triton", "xdsl", "llvmlite", "safetensors"),
    *("tessera_compiler", "tessera_pack"),
}
HEAVY = NEVER_WHEN_RUNNING | {
    *("numpy", "tokenizers", "msgspec", "yaml", "rich", "jinja2"),
    *("tessera_runtime.package", "tessera_runtime.text"),
}
HERE = Path(__file__).resolve().parent


def loaded_after(*arguments: str, setup: str = "") -> set[str]:
    """Names of the modules that are loaded when a command line has run in a fresh process."""
    script = (
        f"import sys\n{setup}\nfrom tessera.cli.main import main\ncode = main({list(arguments)!r})\n"
        "assert code == 0, code\nprint('\\n'.join(['MODULES', *sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.partition("MODULES\n")[2].split())


def test_help_imports_nothing_heavy() -> None:
    assert loaded_after("--help").isdisjoint(HEAVY)
    assert loaded_after("generate", "--help").isdisjoint(HEAVY)
    assert loaded_after("pack", "--help").isdisjoint(HEAVY)


def test_help_answers_at_once() -> None:
    def seconds() -> float:
        started = time.perf_counter()
        subprocess.run([sys.executable, "-m", "tessera", "--help"], check=True, capture_output=True)
        return time.perf_counter() - started

    assert min(seconds() for _ in range(5)) < 0.3


def test_generate_loads_no_compiler_and_only_what_it_uses(package: Path) -> None:
    setup = (
        f"sys.path.insert(0, {str(HERE.parent / 'text')!r})\n"
        "from toy_executor import ToyExecutor\n"
        "from tessera.cli import running\n"
        "running.load_executor = lambda package, **options: ToyExecutor(vocab_size=400)\n"
    )
    plain = loaded_after("generate", str(package), "--prompt", "The capital", "--json", setup=setup)
    assert plain.isdisjoint(NEVER_WHEN_RUNNING)
    assert plain.isdisjoint({"rich", "jinja2", "asyncio"})
    chat = loaded_after("generate", str(package), "--chat", "hi", setup=setup)
    assert chat.isdisjoint(NEVER_WHEN_RUNNING) and "jinja2" not in chat
    verified = loaded_after("verify", str(package))
    assert verified.isdisjoint(NEVER_WHEN_RUNNING)
