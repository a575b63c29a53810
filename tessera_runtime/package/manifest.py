"""The manifest: what a package says about itself. docs/spec/tspkg.md and schemas/manifest.schema.json are normative.

`read_manifest` accepts what the schema accepts and what hangs together; `write_manifest` gives equal bytes for equal
manifests. The last line of the file, `checksum`, covers all lines before it; the struct does not carry it.
"""

from __future__ import annotations

import hashlib
import math
from typing import Annotated, Any, Literal

import msgspec

from tessera_runtime.errors import AbiMismatch, DigestMismatch, ManifestInvalid
from tessera_runtime.package.paths import (
    FOLDERS,
    GRAPH_IR,
    MANIFEST,
    check_distinct,
    check_path,
    program_path,
    shard_path,
)
from tessera_runtime.package.sizes import parse_size
from tessera_runtime.package.strict_yaml import dump_strict, load_strict

FORMAT = 1
"""The format this module writes."""
READABLE_FORMATS = (1,)
"""The formats this module reads: its own and the two before it, as far as they exist."""

_CHECKSUM_LINE = b"checksum: sha256:"

Name = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=128)]
Version = Annotated[str, msgspec.Meta(pattern=r"^[0-9]+\.[0-9]+\.[0-9]+([-+][0-9A-Za-z.+-]+)?$", max_length=64)]
Text = Annotated[str, msgspec.Meta(min_length=1, max_length=4096)]
Sha256 = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}$", max_length=64)]
Count = Annotated[int, msgspec.Meta(ge=0, le=2**62)]
Positive = Annotated[int, msgspec.Meta(ge=1, le=2**62)]


class _Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """A mapping of the manifest: every key is known, and those without a default must be there."""


class Mesh(_Part, frozen=True, kw_only=True):
    """How many devices one instance spans, per axis."""

    tp: Positive
    pp: Positive
    dp: Positive


class KvCache(_Part, frozen=True, kw_only=True):
    """The paged cache as a deployment should start it; `memory.kv` says what a page costs exactly."""

    pages: Positive
    page_size: Text
    swap: Literal["none", "host", "host_pinned"]
    dtype: Literal["fp32", "bf16", "fp16", "int8"] | None = None
    """What keys and values are kept as; of `int8`, each head of a position has a scale. None: not told."""


class Autotune(_Part, frozen=True, kw_only=True):
    """Whether the schedules must be tuned for the machine, and the least machine the package runs on."""

    required: bool
    min_arch: Text


class Compat(_Part, frozen=True, kw_only=True):
    """The API that the package is meant to be served through."""

    api: Literal["openai-v1"]


class Model(_Part, frozen=True, kw_only=True):
    """The model's dimensions, for people and planners; the program alone decides what is computed."""

    architecture: Text
    model_type: Text
    parameters: Positive
    vocab_size: Positive
    layers: Positive
    hidden_size: Positive
    context_length: Positive


class ArenaMemory(_Part, frozen=True, kw_only=True):
    """Intermediate values of a step: `bytes + T * bytes_per_token + L * bytes_per_logit_row`."""

    bytes: Count
    bytes_per_token: Count
    bytes_per_logit_row: Count


class KvMemory(_Part, frozen=True, kw_only=True):
    """The cache: its pages hold `block_tokens` positions of all layers."""

    block_tokens: Positive
    bytes_per_block: Count
    bytes_per_token: Count


class DeviceMemory(_Part, frozen=True, kw_only=True):
    """What a GPU target takes on its device."""

    weights_bytes: Count
    arena: ArenaMemory
    kv: KvMemory


class Memory(_Part, frozen=True, kw_only=True):
    """Everything the package needs in memory, known before it runs. `devices` has the GPU targets by name; all else is
    of `cpu` or, without it, of the first target."""

    weights_bytes: Count
    arena: ArenaMemory
    kv: KvMemory
    max_tokens: Positive
    max_model_len: Positive
    devices: dict[Name, DeviceMemory] = {}


class Target(_Part, frozen=True, kw_only=True):
    """One folder of `tile_kernels/`: the ABI of its program and the machine classes it has objects for."""

    name: Name
    abi: Positive
    classes: tuple[Name, ...]


class Source(_Part, frozen=True, kw_only=True):
    """Where the weights came from."""

    kind: Literal["huggingface", "gguf"]
    id: Text
    config_sha256: Sha256
    revision: Text | None = None


class Evidence(_Part, frozen=True, kw_only=True):
    """How far the package's logits are from the reference's, measured when it was packed."""

    reference: Text
    measured_on: Text
    prompts: tuple[Sha256, ...]
    tokens: Positive
    max_logit_error: float
    mean_logit_error: float
    kl: float
    top1_agreement: float
    perplexity_delta: float
    budget: dict[Name, float]


class FileEntry(_Part, frozen=True, kw_only=True):
    """One file of the package."""

    path: Text
    size: Count
    sha256: Sha256


class Manifest(_Part, frozen=True, kw_only=True):
    """`manifest.yaml`. `files` lists every other file of the package, sorted by path."""

    format: Positive
    name: Name
    version: Version
    entry: Text
    mesh: Mesh
    dtypes: tuple[Name, ...]
    kv_cache: KvCache
    autotune: Autotune
    compat: Compat
    dtype: Name
    model: Model
    memory: Memory
    targets: tuple[Target, ...]
    source: Source
    tessera_version: Text
    licence: Text | None = None
    evidence: Evidence | None = None
    files: tuple[FileEntry, ...]

    def target(self, name: str) -> Target | None:
        """The target of this name, if the package has it."""
        return next((target for target in self.targets if target.name == name), None)


def read_manifest(data: bytes) -> Manifest:
    """The manifest in `data`, whose checksum must fit.

    Raises `ManifestInvalid`, `UnsafePath`, `DigestMismatch`, or `AbiMismatch` for a format of another time.
    """
    value = load_strict(data)
    if not isinstance(value, dict):
        raise ManifestInvalid("manifest.yaml should be a mapping of keys to values.")
    version = value.get("format")
    if isinstance(version, int) and not isinstance(version, bool) and version not in READABLE_FORMATS:
        raise AbiMismatch(
            f"The package has format {version}; this runtime reads format {_listed(READABLE_FORMATS)}.",
            hint="Install a newer Tessera." if version > FORMAT else "Pack the model again with this Tessera.",
        )
    checksum = value.pop("checksum", None)
    try:
        manifest = msgspec.convert(value, Manifest, strict=True)
    except msgspec.ValidationError as error:
        raise ManifestInvalid(f"manifest.yaml does not follow the schema: {_sentence(str(error))}.") from None
    check_manifest(manifest)
    _check_checksum(data, checksum)
    return manifest


def write_manifest(manifest: Manifest) -> bytes:
    """The bytes of `manifest.yaml`; refuses what `read_manifest` would refuse."""
    data = add_checksum(dump_strict(msgspec.to_builtins(manifest)))
    read_manifest(data)
    return data


def add_checksum(body: bytes) -> bytes:
    """`body` with its last line, the checksum of all lines before it."""
    return body + _CHECKSUM_LINE + hashlib.sha256(body).hexdigest().encode() + b"\n"


def _check_checksum(data: bytes, value: Any) -> None:
    if not isinstance(value, str):
        raise ManifestInvalid("manifest.yaml has no checksum; it should be its last line.")
    body, separator, found = data.rpartition(b"\n" + _CHECKSUM_LINE)
    expected = hashlib.sha256(body + b"\n").hexdigest()
    if not separator or found != expected.encode() + b"\n":
        raise DigestMismatch(
            f"manifest.yaml was altered: its checksum is {value!r}, its text gives 'sha256:{expected}'.",
            hint="Get the package again, or pack the model again.",
        )


def check_manifest(manifest: Manifest) -> None:
    """Raises unless the manifest hangs together: paths, order, and that what one field promises another keeps."""
    paths = [entry.path for entry in manifest.files]
    for path in paths:
        check_path(path)
        if path != GRAPH_IR and path.split("/")[0] not in FOLDERS:
            raise ManifestInvalid(
                f"manifest.yaml lists {path!r}, but a package holds {MANIFEST}, {GRAPH_IR} and the folders"
                f" {', '.join(FOLDERS)} only."
            )
    if paths != sorted(set(paths)):
        raise ManifestInvalid("manifest.yaml must list its files sorted by path and each once.")
    check_distinct([*paths, MANIFEST])
    names = [target.name for target in manifest.targets]
    if not names or len(set(names)) != len(names):
        raise ManifestInvalid("manifest.yaml must name at least one target, and each once, in `targets`.")
    strangers = sorted(set(manifest.memory.devices) - set(names))
    if strangers:
        raise ManifestInvalid(f"manifest.yaml: memory.devices names {strangers[0]!r}, which `targets` does not.")
    mesh = manifest.mesh
    if mesh.tp * mesh.pp > len(paths):
        raise ManifestInvalid(
            f"manifest.yaml has mesh tp={mesh.tp}, pp={mesh.pp}, but not a shard for each place in it."
        )
    required = [GRAPH_IR, *(program_path(name) for name in names)]
    required += [shard_path(tensor, pipeline) for tensor in range(mesh.tp) for pipeline in range(mesh.pp)]
    for path in required:
        if path not in paths:
            raise ManifestInvalid(f"manifest.yaml does not list {path!r}, which its targets and mesh call for.")
    if manifest.dtype not in manifest.dtypes:
        raise ManifestInvalid(f"manifest.yaml has dtype {manifest.dtype!r}, which `dtypes` does not name.")
    try:
        page = parse_size(manifest.kv_cache.page_size)
    except ValueError as error:
        raise ManifestInvalid(f"manifest.yaml: kv_cache.page_size: {error}") from None
    if page != manifest.memory.kv.bytes_per_block:
        raise ManifestInvalid(
            f"manifest.yaml contradicts itself: kv_cache.page_size is {page} bytes,"
            f" memory.kv.bytes_per_block is {manifest.memory.kv.bytes_per_block}."
        )
    _check_numbers(manifest.evidence)


def _check_numbers(evidence: Evidence | None) -> None:
    if evidence is None:
        return
    numbers = {name: value for name, value in msgspec.to_builtins(evidence).items() if isinstance(value, float)}
    for name, value in [*numbers.items(), *evidence.budget.items()]:
        if not math.isfinite(value):
            raise ManifestInvalid(f"manifest.yaml: evidence.{name} is {value}, which is not a number to judge by.")


def _sentence(text: str) -> str:
    """msgspec's message with the path first: `mesh.tp: Expected `int` >= 1`."""
    message, separator, path = text.partition(" - at `")
    if not separator:
        return message
    return f"{path.rstrip('`').removeprefix('$').removeprefix('.') or 'the manifest'}: {message}"


def _listed(values: tuple[Any, ...]) -> str:
    return " and ".join(str(value) for value in values)
