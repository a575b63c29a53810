"""Options and arguments that several commands share, and the kinds of values they take."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])


class Size(click.ParamType):  # type: ignore[type-arg]  # generic only in newer versions of click
    """A number of bytes: `8GiB`, `512MB`, `1000000`."""

    name = "size"

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> int:
        from tessera_runtime.package.sizes import parse_size

        try:
            return int(parse_size(str(value)))
        except ValueError as error:
            self.fail(str(error), parameter, context)


def package_argument(command: Command) -> Command:
    """The package a command works on."""
    return click.argument("package", type=click.Path(path_type=Path))(command)


def json_option(command: Command) -> Command:
    """`--json`, which every command has."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else.")(command)


def execution_options(command: Command) -> Command:
    """`--threads` and `--target`."""
    threads = click.option(
        "--threads", type=click.IntRange(1, 64), help="Threads that compute. [default: all usable cores]"
    )
    target = click.option("--target", help="Target of the package to run. [default: the fastest this machine has]")
    return threads(target(command))
