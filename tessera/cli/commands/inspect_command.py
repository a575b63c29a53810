"""`tessera inspect`: what a package holds, from its manifest and headers alone."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tessera.cli.options import json_option, package_argument

if TYPE_CHECKING:
    from tessera_runtime.package.manifest import Manifest
    from tessera_runtime.package.reader import Package

IR_FILES = {
    "graph": "graph_ir.tssa",
    "schedule": "tile_kernels/cpu/schedule_ir.tssa",
    "tile": "tile_kernels/cpu/tile_ir.tssa",
}


@click.command("inspect")
@package_argument
@click.option("--ir", type=click.Choice(sorted(IR_FILES)), help="Print this IR's text and nothing else.")
@json_option
def command(package: Path, ir: str | None, as_json: bool) -> None:
    """Show what a package holds.

    Sizes are checked, digests are not: see `tessera verify`.
    """
    import msgspec

    from tessera.cli.output import print_json
    from tessera_runtime.package.reader import open_package

    opened = open_package(package, verify="sizes")
    if ir is not None:
        text = opened.read_text(IR_FILES[ir])
        if as_json:
            print_json({"ir": ir, "path": IR_FILES[ir], "text": text})
        else:
            sys.stdout.write(text if text.endswith("\n") else text + "\n")
        return
    kernels = {target.name: _kernels(opened, target.name) for target in opened.manifest.targets}
    if as_json:
        manifest: dict[str, Any] = msgspec.to_builtins(opened.manifest)
        print_json({"package": str(package), "manifest": manifest, "kernels": kernels})
        return
    _print_summary(opened.manifest, _weight_bytes(opened))
    for target, rows in kernels.items():
        _print_kernels(target, rows)
    _print_evidence(opened.manifest)
    _print_files(opened.manifest)


def _kernels(package: Package, target: str) -> list[dict[str, Any]]:
    """One row per fusion group: what it does, how often it is launched, and whether its schedule was tuned."""
    program = package.program(target)
    if isinstance(program.get("kernels"), dict):
        from tessera.cli.device_kernels import device_kernels

        return device_kernels(program)
    launched: dict[str, int] = {}
    for launch in program["launches"]:
        name = str(launch.get("group")) if isinstance(launch, dict) else "?"
        launched[name] = launched.get(name, 0) + 1
    classes = program.get("classes")
    classes = classes if isinstance(classes, dict) else {}
    rows = []
    for name, group in sorted(program["groups"].items()):
        group = group if isinstance(group, dict) else {}
        variants = {
            str(cpu): len(entry.get("kernels", {}).get(name, ()))
            for cpu, entry in classes.items()
            if isinstance(entry, dict)
        }
        rows.append(
            {
                "group": name,
                "kind": group.get("kind"),
                "tuned": group.get("tuned"),
                "launches": launched.get(name, 0),
                "variants": variants,
            }
        )
    return rows


def _weight_bytes(package: Package) -> dict[str, int]:
    """Bytes of the weights of the first target, by the dtype that its program gives them, most first."""
    tensors = package.weights().entries
    found: dict[str, int] = {}
    for weight in package.program(package.manifest.targets[0].name)["weights"]:
        entry = tensors.get(str(weight.get("name"))) if isinstance(weight, dict) else None
        if entry is not None:
            dtype = str(weight.get("dtype"))
            found[dtype] = found.get(dtype, 0) + entry.size
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def _print_summary(manifest: Manifest, weights: dict[str, int]) -> None:
    from tessera.cli.output import print_facts, readable_count
    from tessera_runtime.package.sizes import readable_size

    model, mesh = manifest.model, manifest.mesh
    size = sum(entry.size for entry in manifest.files)
    source = manifest.source
    print_facts(
        f"{manifest.name} {manifest.version}",
        [
            ("architecture", f"{model.architecture} ({model.model_type})"),
            ("parameters", readable_count(model.parameters)),
            ("layers", f"{model.layers} of width {model.hidden_size}"),
            ("vocabulary", f"{model.vocab_size:,}"),
            ("context", f"{manifest.memory.max_model_len:,} of {model.context_length:,} tokens"),
            ("dtype", manifest.dtype),
            *((("kv cache", manifest.kv_cache.dtype),) if manifest.kv_cache.dtype is not None else ()),
            ("weights", ", ".join(f"{readable_size(size)} of {dtype}" for dtype, size in weights.items()) or "none"),
            ("mesh", f"tp={mesh.tp} pp={mesh.pp} dp={mesh.dp}"),
            (
                "targets",
                "; ".join(f"{target.name}: {', '.join(target.classes) or 'any'}" for target in manifest.targets),
            ),
            ("size", f"{readable_size(size)} in {len(manifest.files) + 1} files"),
            ("source", f"{source.kind} {source.id}" + (f" at {source.revision}" if source.revision else "")),
            ("licence", manifest.licence or "not stated"),
            ("packed by", f"tessera {manifest.tessera_version}"),
        ],
    )
    print()


def _print_kernels(target: str, kernels: list[dict[str, Any]]) -> None:
    from tessera.cli.device_kernels import COLUMNS, device_rows, schedule
    from tessera.cli.output import print_table

    if kernels and "registers" in kernels[0]:
        print_table(f"Kernels of target {target}", COLUMNS, device_rows(kernels))
        return
    rows = [
        (
            row["group"],
            row["kind"] or "-",
            row["launches"],
            schedule(row["tuned"], row["variants"]),
            ", ".join(f"{name} ×{count}" for name, count in row["variants"].items()) or "-",
        )
        for row in kernels
    ]
    columns = ("group", "kind", "launches", "schedule", "kernels")
    print_table(f"Kernels of target {target}", columns, rows)


def _print_evidence(manifest: Manifest) -> None:
    from tessera.cli.output import print_facts

    evidence = manifest.evidence
    if evidence is None:
        print("Evidence: none; the package was made with --no-verify.\n")
        return

    def within(name: str, value: float) -> str:
        budget = evidence.budget.get(name)
        return f"{value:.3g}" + (f" (budget {budget:.3g})" if budget is not None else "")

    print_facts(
        f"Evidence: {evidence.tokens} tokens of {len(evidence.prompts)} prompts, against {evidence.reference}",
        [
            ("max logit error", within("max_logit_error", evidence.max_logit_error)),
            ("mean logit error", within("mean_logit_error", evidence.mean_logit_error)),
            ("KL divergence", within("kl", evidence.kl)),
            ("top-1 agreement", within("top1_agreement", evidence.top1_agreement)),
            ("perplexity delta", within("perplexity_delta", evidence.perplexity_delta)),
            ("measured on", evidence.measured_on),
        ],
    )
    print()


def _print_files(manifest: Manifest) -> None:
    from tessera.cli.output import print_table
    from tessera_runtime.package.sizes import readable_size

    rows = [(entry.path, readable_size(entry.size), entry.sha256[:16] + "…") for entry in manifest.files]
    print_table("Files", ("path", "size", "sha256"), rows)
