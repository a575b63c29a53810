"""`tessera pack`: a checkpoint becomes a package."""

from __future__ import annotations

from pathlib import Path

import click

from tessera.cli.options import json_option


@click.command("pack")
@click.option("--from-hf", "from_hf", metavar="DIR|HUB_ID", help="A Hugging Face checkpoint.")
@click.option("--from-gguf", "from_gguf", type=click.Path(path_type=Path), help="A GGUF file.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The package to make; must not exist yet.")
@click.option("--name", help="Name of the package. [default: from the source]")
@click.option("--version", "version", default="1.0.0", show_default=True, help="Version of the package.")
@click.option(
    "--dtype",
    type=click.Choice(("fp32", "bf16", "fp16", "int8", "fp8", "int4")),
    default="bf16",
    show_default=True,
    help="Of the weights. fp16 and fp8 are for GPUs alone.",
)
@click.option(
    "--kv-dtype",
    type=click.Choice(("auto", "bf16", "int8", "fp32")),
    default="auto",
    show_default=True,
    help="Of the KV cache; auto is fp32 with --dtype fp32, else bf16. int8 takes half the memory of bf16.",
)
@click.option(
    "--target",
    "targets",
    multiple=True,
    default=("cpu",),
    show_default=True,
    help="cpu, cuda-sm80, cuda-sm90, cuda-sm100, cuda-sm120, hip-gfx942 or hip-gfx950; may be repeated. GPUs need "
    "tessera[triton], and no GPU.",
)
@click.option("--mesh", default="tp=1,pp=1,dp=1", show_default=True, help="Devices per axis.")
@click.option("--max-model-len", type=click.IntRange(min=1), help="Longest sequence. [default: the model's context]")
@click.option(
    "--verify/--no-verify", default=True, show_default=True, help="Compare with transformers; store evidence."
)
@click.option("--dump-ir", type=click.Path(path_type=Path), help="Write the IR after every pass into this folder.")
@json_option
def command(
    from_hf: str | None,
    from_gguf: Path | None,
    out: Path,
    name: str | None,
    version: str,
    dtype: str,
    kv_dtype: str,
    targets: tuple[str, ...],
    mesh: str,
    max_model_len: int | None,
    verify: bool,
    dump_ir: Path | None,
    as_json: bool,
) -> None:
    """Compile a checkpoint into a package.

    Give exactly one of --from-hf and --from-gguf. Nothing is left behind when it fails. The exit code is 1 if the
    package's numerics are beyond the budget of its dtype.
    """
    if (from_hf is None) == (from_gguf is None):
        raise click.UsageError("Give exactly one of --from-hf and --from-gguf.")
    from tessera.cli.output import print_facts, print_json
    from tessera.cli.progress import progress_bars
    from tessera_pack.packing import PackOptions, pack

    options = PackOptions(
        from_hf=from_hf,
        from_gguf=from_gguf,
        out=out,
        name=name,
        version=version,
        dtype=dtype,
        kv_dtype=kv_dtype,
        targets=targets,
        mesh=mesh,
        max_model_len=max_model_len,
        verify=verify,
        dump_ir=dump_ir,
    )
    with progress_bars() as report:
        done = pack(options, progress=report)
    if as_json:
        print_json(done.to_dict())
    else:
        print_facts(f"Packed {out}", done.summary())
