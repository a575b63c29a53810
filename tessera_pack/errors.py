"""Everything packing can refuse, one class per mistake.

    PackError
    ├── CheckpointError              what is to be packed
    │   ├── CheckpointNotFound       there is no checkpoint at the path, or it has no config.json or no weights
    │   ├── CheckpointInvalid        a shard is missing, corrupt or truncated, or a tensor is absent
    │   ├── PickleRefused            the weights are pickled, and unpickling can run code
    │   ├── ShapeMismatch            a tensor has another shape than the model needs
    │   ├── WeightNotFinite          NaN or infinity where numbers are to be quantized
    │   ├── TokenizerMissing         the checkpoint has no tokenizer that can be packed
    │   └── GgufInvalid              a GGUF file cannot be converted
    ├── OptionError                  how it is to be packed
    │   ├── MeshInvalid              a mesh that does not parse or that the target cannot do
    │   ├── OptionInvalid            any other option outside its range
    │   ├── DependencyMissing        an option needs a library that is not installed
    │   └── RemoteCodeRefused        the checkpoint wants its own Python code to be run
    ├── OutputError                  where it is to be written
    │   ├── OutputExists             something is already there
    │   ├── OutputUnwritable         the folder cannot be written to
    │   └── DiskFull                 not enough space
    └── EvidenceFailed               the package's numbers differ too much from the reference's

The shape is the one of `tessera_runtime.errors`: `str(error)` is the message and the hint, `code` is for programs.
"""

from __future__ import annotations


class PackError(Exception):
    """Something `tessera pack` refuses to do; every error that a user can cause derives from this."""

    code = "pack-error"

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message, hint)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}" if self.hint else self.message

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.message, self.hint)


def _rebuild(kind: type[PackError], message: str, hint: str) -> PackError:
    return kind(message, hint=hint)


class CheckpointError(PackError):
    """The checkpoint cannot be packed as it is."""

    code = "checkpoint-error"


class CheckpointNotFound(CheckpointError):
    """There is no checkpoint at the path, or it lacks `config.json` or weights."""

    code = "checkpoint-not-found"


class CheckpointInvalid(CheckpointError):
    """A shard is missing, corrupt or truncated, or a tensor is absent; the message names the file and the tensor."""

    code = "checkpoint-invalid"


class PickleRefused(CheckpointError):
    """The only weights are pickled (`*.bin`, `*.pt`); reading those can run code, so Tessera never does."""

    code = "pickle-refused"


class ShapeMismatch(CheckpointError):
    """A tensor of the checkpoint has another shape than the model made from its config needs."""

    code = "shape-mismatch"


class WeightNotFinite(CheckpointError):
    """A tensor that is to be quantized holds NaN or infinity."""

    code = "weight-not-finite"


class TokenizerMissing(CheckpointError):
    """The checkpoint has no `tokenizer.json`, and none can be made from what it has."""

    code = "tokenizer-missing"


class GgufInvalid(CheckpointError):
    """A GGUF file is malformed or of a kind that cannot be converted."""

    code = "gguf-invalid"


class OptionError(PackError):
    """An option of the command is wrong."""

    code = "option-error"


class MeshInvalid(OptionError):
    """The mesh does not parse, or asks for more than the target can do."""

    code = "mesh-invalid"


class OptionInvalid(OptionError):
    """An option is outside its range; the message names it."""

    code = "option-invalid"


class DependencyMissing(OptionError):
    """What was asked for needs a library that is not installed; the message names the extra that brings it."""

    code = "dependency-missing"


class RemoteCodeRefused(OptionError):
    """The checkpoint comes with Python code of its own; Tessera never runs code from a checkpoint."""

    code = "remote-code-refused"


class OutputError(PackError):
    """The package cannot be written where it was asked for."""

    code = "output-error"


class OutputExists(OutputError):
    """Something already exists at the output path; Tessera never overwrites."""

    code = "output-exists"


class OutputUnwritable(OutputError):
    """The output's folder does not exist or may not be written to."""

    code = "output-unwritable"


class DiskFull(OutputError):
    """The file system lacks the space; the message says how much is needed and how much there is."""

    code = "disk-full"


class EvidenceFailed(PackError):
    """The package's logits differ from the reference's by more than its dtype's budget."""

    code = "evidence-failed"
