"""The mistakes that the compiler reports.

    CompileError
    ├── UnsupportedModel        the checkpoint is of a kind that is not compiled
    │   └── UnsupportedOperation    its graph uses an operation or option that Graph IR does not have
    ├── ExportFailed            torch.export could not trace the model
    ├── InvalidCheckpoint       the directory is not a readable checkpoint
    │   └── MissingWeights          tensors that the model needs are not in it
    └── InvalidGraph            text or module that is not Graph IR

Each message says what was expected, what was found, and what to do next.
"""

from __future__ import annotations


class CompileError(Exception):
    """The base of all errors that the compiler raises for what it is given."""


class UnsupportedModel(CompileError):
    """The model's architecture or configuration is outside of what is compiled."""


class UnsupportedOperation(UnsupportedModel):
    """The model uses an operation, or an option of one, that Graph IR cannot express."""


class ExportFailed(CompileError):
    """`torch.export` could not turn the model's own code into a graph."""


class InvalidCheckpoint(CompileError):
    """The directory does not hold a checkpoint, or its files cannot be read."""


class MissingWeights(InvalidCheckpoint):
    """The checkpoint lacks tensors that the model needs, or they have other shapes."""


class InvalidGraph(CompileError):
    """A module is not valid Graph IR."""
