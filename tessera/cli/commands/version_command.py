"""`tessera version`."""

from __future__ import annotations

import platform

import click

from tessera.cli.options import json_option


@click.command("version")
@json_option
def command(as_json: bool) -> None:
    """Show the versions of Tessera, of what it reads, and of Python."""
    from tessera.cli.output import print_facts, print_json
    from tessera_runtime.abi import GPU_ABIS, SUPPORTED_ABIS
    from tessera_runtime.package.manifest import READABLE_FORMATS

    facts = {
        "tessera": installed_version(),
        "formats": list(READABLE_FORMATS),
        "abis": list(SUPPORTED_ABIS),
        "gpu_abis": list(GPU_ABIS),
        "python": platform.python_version(),
        "machine": platform.machine(),
    }
    if as_json:
        print_json(facts)
        return
    names = {"formats": "package formats read", "abis": "program ABIs run", "gpu_abis": "GPU program ABIs run"}
    shown = [
        (names.get(key, key), ", ".join(map(str, value)) if isinstance(value, list) else value)
        for key, value in facts.items()
    ]
    print_facts(f"Tessera {facts['tessera']}", shown[1:])


def installed_version() -> str:
    """The version of the installed distribution; `unknown` where the source runs without being installed."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("tessera")
    except PackageNotFoundError:
        return "unknown"
