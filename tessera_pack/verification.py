"""`tessera verify --reference`: the evidence of a finished package, measured again."""

from __future__ import annotations

from pathlib import Path

import msgspec

from tessera_pack.errors import CheckpointNotFound, ShapeMismatch
from tessera_pack.evidence import Progress, collect_evidence
from tessera_runtime.package.reader import open_package


def verify_numerics(package_path: Path, reference: Path, *, progress: Progress) -> dict[str, object]:
    """Compares a package with the checkpoint it was packed from, or another copy of it; returns the evidence.

    Raises `EvidenceFailed` beyond the budget of the package's dtype, a `CheckpointError` if the folder is no
    checkpoint of this model.
    """
    package = open_package(package_path, verify="digests")
    if not (reference / "config.json").is_file():
        raise CheckpointNotFound(
            f"'{reference}' has no config.json, so it is not a Hugging Face checkpoint.",
            hint="Point --reference to the folder that the package was packed from.",
        )
    _require_same_model(package.manifest.model.vocab_size, reference)
    return msgspec.to_builtins(collect_evidence(package, reference, progress))  # type: ignore[no-any-return]


def _require_same_model(vocab_size: int, reference: Path) -> None:
    from tessera_compiler.frontends.huggingface import load_config

    found = int(load_config(reference).vocab_size)
    if found != vocab_size:
        raise ShapeMismatch(
            f"The package has a vocabulary of {vocab_size} tokens, the checkpoint '{reference}' one of {found}.",
            hint="Point --reference to the checkpoint that the package was packed from.",
        )
