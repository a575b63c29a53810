"""Writes docs/cli.md from the commands themselves; `--check` only says whether it is up to date."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import click

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tessera.cli.main import tessera  # noqa: E402

PAGE = ROOT / "docs" / "cli.md"
HEAD = """# The command line

<!-- Made by tools/generate_cli_reference.py from the commands themselves; do not edit. -->

Every command takes `--json`: it then prints exactly one JSON object on stdout and nothing else. If it fails, that
object is `{"error": {"code", "message"}}`; the codes are in [errors.md](spec/errors.md). People read one sentence and
a hint on stderr.

| exit code | meaning |
|---|---|
| 0 | done |
| 1 | the input was fine and the answer is no: a failed check, or numerics beyond their budget |
| 2 | bad input: a wrong option, a missing or damaged file, a request the model cannot serve |
| 70 | a defect of Tessera; `TESSERA_LOG=debug` shows where |
| 130 | interrupted |
| 141 | whoever read the output left before its end |

| variable | meaning |
|---|---|
| `TESSERA_THREADS` | threads that compute, unless `--threads` is given |
| `TESSERA_TARGET` | target to run, unless `--target` is given |
| `TESSERA_LOG` | `debug`, `info`, `warning` (default) or `error` |
"""


def describe(command: click.Command, context: click.Context) -> str:
    """One command's section: its usage, what it does, and a table of its options."""
    usage = " ".join(command.collect_usage_pieces(context))
    lines = [f"## tessera {context.info_name}", "", f"`tessera {context.info_name} {usage}`", ""]
    for paragraph in (command.help or "").split("\n\n"):
        lines += [" ".join(paragraph.split()), ""]
    lines += ["| option | meaning |", "|---|---|"]
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record is not None:
            option, meaning = (cell.replace("|", "\\|") for cell in record)
            lines.append(f"| `{option}` | {' '.join(meaning.split())} |")
    return "\n".join(lines) + "\n"


def render() -> str:
    """The whole page."""
    context = click.Context(tessera, info_name="tessera")
    sections = [HEAD]
    for name in tessera.list_commands(context):
        command = tessera.get_command(context, name)
        assert command is not None
        sections.append(describe(command, click.Context(command, info_name=name, parent=context)))
    return "\n".join(sections)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="exit with 1 if the page is out of date")
    arguments = parser.parse_args()
    page = render()
    if arguments.check:
        if not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != page:
            print(f"{PAGE.relative_to(ROOT)} is out of date; run tools/generate_cli_reference.py", file=sys.stderr)
            return 1
        return 0
    PAGE.write_text(page, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
