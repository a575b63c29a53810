"""The `tessera` command. A subcommand's module is imported when that subcommand runs, and not before."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

import click

from tessera.cli.errors import ends_with_exit_code

COMMANDS = {
    "pack": "Compile a checkpoint into a package.",
    "inspect": "Show what a package holds.",
    "verify": "Check a package, and its numerics against a reference.",
    "plan": "Say what a package needs in memory and how many users fit.",
    "generate": "Continue a prompt, or answer one message.",
    "eval": "Measure perplexity on a text.",
    "run": "Serve packages over HTTP.",
    "chat": "Talk with a package or a server in the terminal.",
    "autotune": "Find the fastest schedules for this machine.",
    "bench": "Measure the speed of a package or a server.",
    "info": "Show what this machine can run.",
    "version": "Show versions.",
}
"""Each command and the line that `--help` shows for it; the command itself is
`tessera.cli.commands.<name>_command.command`.
"""


class LazyGroup(click.Group):
    """Knows its subcommands by name, so that `--help` and a misspelt name import none of them."""

    def list_commands(self, context: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        module = importlib.import_module(f"tessera.cli.commands.{name}_command")
        command: click.Command = module.command
        return command

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
def tessera() -> None:
    """Compile a Hugging Face checkpoint into one package, and run it."""


@ends_with_exit_code
def main(arguments: Sequence[str]) -> int:
    """Runs one command line. `main()` takes it from `sys.argv`; the exit code is returned and nothing is raised."""
    # Not `tessera.main`, which would answer interrupts and closed pipes in its own way.
    with tessera.make_context("tessera", list(arguments)) as context:
        tessera.invoke(context)
    return 0


if __name__ == "__main__":
    sys.exit(main())
