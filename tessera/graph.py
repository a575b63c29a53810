"""Graphs of a package: which shapes of a step have kernels of their own.

On a GPU, capturing records one launch graph per bucket. A package's CPU program is native code already: nothing is left
to record, and `capture` says which buckets the code has, so that a server refuses at start what it would miss later.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tessera.errors import CaptureInvalid
from tessera.packages import Entry, require_entry

AXES = ("seq_len", "head_dim")


@dataclass(frozen=True)
class Capture:
    """What `capture` found."""

    entry: str
    target: str
    processor_class: str
    """The class of processor whose code this machine runs; empty for the reference."""
    buckets: dict[str, tuple[int, ...]]
    """By axis. `seq_len`: the largest number of tokens in a step that each bucket's kernels are for, ascending; the
    last is the most a step may have. `head_dim`: the widths of attention heads in the program."""
    max_model_len: int

    def bucket(self, tokens: int) -> int:
        """The `seq_len` bucket that a step of so many tokens falls into."""
        sizes = self.buckets.get("seq_len", ())
        for size in sizes:
            if 1 <= tokens <= size:
                return size
        raise CaptureInvalid(f"A step has 1 to {sizes[-1] if sizes else 0} tokens here, not {tokens}.")


def capture(entry: Entry, bucket_by: Sequence[str] = ("seq_len",)) -> Capture:
    """Checks that this machine can run the entry, and gives the buckets its program has along each axis asked for.

    Raises `CaptureInvalid` for an axis that a program is not bucketed by, `TargetUnavailable` if nothing runs here.
    """
    from tessera.runtime import target_for
    from tessera_runtime.errors import TargetUnavailable

    unknown = next((axis for axis in bucket_by if axis not in AXES), None)
    if isinstance(bucket_by, str) or unknown is not None or not bucket_by:
        raise CaptureInvalid(
            f"bucket_by lists some of {', '.join(AXES)}; found {bucket_by!r}.", hint='Use bucket_by=["seq_len"].'
        )
    module = require_entry(entry).module
    found = target_for(module)
    if found is None:
        names = ", ".join(target.name for target in module.manifest.targets)
        raise TargetUnavailable(
            f"No target of the package {module.name!r} ({names}) runs on this machine.",
            hint="`tessera info` shows what this machine has; pack the model for it.",
        )
    target, processor_class = found
    program = module.program(target)
    limits = program["limits"]
    buckets: dict[str, tuple[int, ...]] = {}
    if "seq_len" in bucket_by:
        kernels = program["classes"][processor_class]["kernels"].values() if processor_class else ()
        own = {variant["max_tokens"] for variants in kernels for variant in variants if variant["max_tokens"]}
        buckets["seq_len"] = tuple(
            sorted({*(size for size in own if size < limits["max_tokens"]), limits["max_tokens"]})
        )
    if "head_dim" in bucket_by:
        buckets["head_dim"] = tuple(sorted({layer["key_dim"] for layer in program["cache"]["layers"]}))
    return Capture(str(entry), target, processor_class, buckets, limits["max_model_len"])
