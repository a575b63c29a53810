"""How an engine is set up: what its process gets as one JSON object on its command line."""

from __future__ import annotations

import msgspec

from tessera_runtime.errors import InvalidRequest

MAX_SEQUENCES = 4096
LANES = 3


class EngineSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Made with a value out of its range, it raises `InvalidRequest`. None means: what package and machine allow."""

    package: str = ""
    """The folder of the package."""
    target: str | None = None
    threads: int | None = None
    max_batch_tokens: int | None = None
    """Tokens of one step, at most the program's limit."""
    max_sequences: int = 256
    """Answers that are worked on at once; others wait. Cut to `max_batch_tokens`, so that each gets a token a step."""
    max_model_len: int | None = None
    """Prompt and answer together; at most the program's."""
    kv_memory: int | None = None
    """Bytes for the KV cache. None: half of the free memory, or what `max_sequences` of the longest requests need."""
    pages: int | None = None
    """Blocks of the KV cache; goes before `kv_memory`."""
    prefix_reuse: bool = True
    """Whether blocks of finished prompts and answers are kept for others that begin alike."""
    lane_shares: tuple[float, float, float] = (1.0, 1.0, 0.75)
    """Of `max_sequences`, the part that each priority lane may occupy at most; at least one sequence."""
    check_when_idle: bool = False
    """Whether the books of scheduler and cache are checked each time the engine runs out of work: for debugging."""

    def __post_init__(self) -> None:
        for name in ("threads", "max_batch_tokens", "max_model_len", "kv_memory", "pages"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InvalidRequest(f"{name} must be at least 1, not {value}.")
        if not 1 <= self.max_sequences <= MAX_SEQUENCES:
            raise InvalidRequest(f"max_sequences must lie in 1 to {MAX_SEQUENCES}, not {self.max_sequences}.")
        for lane, share in enumerate(self.lane_shares):
            if not 0.0 < share <= 1.0:
                raise InvalidRequest(f"The share of lane p{lane} must be above 0, to 1, not {share!r}.")
