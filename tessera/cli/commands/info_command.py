"""`tessera info`."""

from __future__ import annotations

import click

from tessera.cli.options import json_option


@click.command("info")
@json_option
def command(as_json: bool) -> None:
    """Show what this machine can run: its class, cores, memory and GPUs, and what this runtime reads."""
    from tessera.cli.output import notice, print_facts, print_json
    from tessera_runtime.observe.capabilities import capabilities
    from tessera_runtime.package.sizes import readable_size

    facts = capabilities(notice)
    if as_json:
        print_json(facts)
        return
    shown = [
        ("machine", f"{facts['machine']}, {facts['processor']}"),
        ("classes", ", ".join(facts["classes"])),
        ("features", ", ".join(facts["features"]) or "none that matter"),
        ("cores", f"{facts['cores']} usable, {facts['physical_cores']} physical"),
        (
            "memory",
            f"{readable_size(facts['memory_bytes'])}, {readable_size(facts['available_memory_bytes'])} available",
        ),
        *(
            ("device", f"{each['name']}, {each['kind']}-{each['architecture']}, {readable_size(each['memory_bytes'])}")
            for each in facts["devices"]
        ),
        ("backends", ", ".join(facts["backends"])),
        ("package formats read", ", ".join(map(str, facts["formats"]))),
        ("program ABIs run", ", ".join(map(str, facts["abis"]))),
        ("GPU program ABIs run", ", ".join(map(str, facts["gpu_abis"]))),
    ]
    print_facts("This machine", shown)
