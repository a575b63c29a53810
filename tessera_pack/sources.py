"""Where a checkpoint comes from: a folder, a model hub, or a GGUF file. All become a Hugging Face checkpoint folder."""

from __future__ import annotations

import contextlib
import hashlib
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tessera_pack.errors import CheckpointNotFound, OptionInvalid
from tessera_pack.gguf import convert_gguf
from tessera_runtime.package.manifest import Source

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
_HUB_FILES = ("*.json", "*.safetensors", "*.model", "*.jinja", "*.txt", "LICENSE*", "README.md")


@dataclass(frozen=True)
class ResolvedSource:
    """A checkpoint folder, and what the manifest says about where it came from."""

    directory: Path
    manifest: Source
    name: str
    licence: str | None


@contextlib.contextmanager
def resolve_source(from_hf: str | None, from_gguf: Path | None) -> Iterator[ResolvedSource]:
    """Gives the checkpoint folder while the context lasts. Raises a `CheckpointError`."""
    if from_gguf is not None:
        with tempfile.TemporaryDirectory(prefix="tessera-gguf-") as scratch:
            directory = convert_gguf(from_gguf, Path(scratch) / "checkpoint")
            yield _described(directory, "gguf", from_gguf.name, None, _gguf_licence(from_gguf))
        return
    if from_hf is None:
        raise OptionInvalid("Nothing to pack was named.", hint="Give --from-hf or --from-gguf.")
    directory = Path(from_hf)
    revision = None
    if not directory.is_dir():
        directory, revision = _from_hub(from_hf)
    if not (directory / "config.json").is_file():
        raise CheckpointNotFound(
            f"{from_hf!r} has no config.json, so it is not a Hugging Face checkpoint.",
            hint="Point --from-hf to the folder that save_pretrained wrote.",
        )
    name = from_hf if revision is not None else directory.resolve().name
    yield _described(directory, "huggingface", name, revision, _card_licence(directory))


def _from_hub(name: str) -> tuple[Path, str]:
    """The snapshot of a model on the hub, downloaded or from its cache, and its revision."""
    if not _HUB_ID.fullmatch(name):
        raise CheckpointNotFound(f"There is no folder {name!r}.", hint="Check the path given to --from-hf.")
    import huggingface_hub

    try:
        snapshot = Path(huggingface_hub.snapshot_download(name, allow_patterns=list(_HUB_FILES)))
    except Exception as error:
        reason = str(error).strip().splitlines()[0].rstrip(".") if str(error).strip() else type(error).__name__
        raise CheckpointNotFound(
            f"{name!r} is not a folder here, and the model hub does not give it: {reason}.",
            hint="Check the name, or download the model elsewhere and point --from-hf to its folder.",
        ) from None
    return snapshot, snapshot.name


def _described(directory: Path, kind: str, name: str, revision: str | None, licence: str | None) -> ResolvedSource:
    config = hashlib.sha256((directory / "config.json").read_bytes()).hexdigest()
    source = Source(kind=kind, id=name, config_sha256=config, revision=revision)  # type: ignore[arg-type]
    return ResolvedSource(directory, source, name.rsplit("/", 1)[-1].removesuffix(".gguf"), licence)


def _card_licence(directory: Path) -> str | None:
    """The licence that the model card's front matter names."""
    card = directory / "README.md"
    if not card.is_file():
        return None
    found = re.match(r"---\n(.*?)\n---", card.read_text(encoding="utf-8", errors="replace"), re.DOTALL)
    line = re.search(r"^license:\s*[\"']?([\w.+-]+)", found.group(1), re.MULTILINE) if found else None
    return line.group(1) if line else None


def _gguf_licence(path: Path) -> str | None:
    from gguf import GGUFReader

    field = GGUFReader(path).get_field("general.license")
    return str(field.contents()) or None if field is not None else None
