"""What the scheduler knows of one request: the tokens it has and how many of them are computed."""

from __future__ import annotations

from tessera_runtime.kvcache.prefix import block_key

NO_SEAT = -1


class Sequence:
    """Tokens that are known, the first `computed` of them in the cache. Who draws a token appends it to `tokens`."""

    __slots__ = (
        "arrival",
        "blocks",
        "cached_tokens",
        "computed",
        "every_row",
        "keys",
        "lane",
        "name",
        "overtaken",
        "published",
        "root",
        "seat",
        "synced",
        "tokens",
    )

    def __init__(self, name: str, tokens: list[int], root: bytes, lane: int = 1, every_row: bool = False) -> None:
        self.name = name
        self.tokens = tokens
        self.root = root
        """Key of the tenant (kvcache/prefix.py)."""
        self.lane = lane
        self.every_row = every_row
        """Whether the logits of all tokens are wanted: nothing may then come from the cache of others."""
        self.arrival = 0
        self.computed = 0
        self.blocks: list[int] = []
        self.keys: list[bytes] = []
        """Of the full blocks of `tokens`, as far as they were needed."""
        self.published = 0
        """Of the blocks, how many first ones others may find."""
        self.cached_tokens: int | None = None
        """Of the tokens, how many were found in the cache when the sequence was admitted first."""
        self.overtaken = 0
        """How often others were let past it; see `Scheduler`."""
        self.seat = NO_SEAT
        """While it runs: a number below `max_sequences` that no other has."""
        self.synced = 0
        """Of the blocks, how many the batch builder has seen since the sequence got its seat."""

    @property
    def running(self) -> bool:
        return self.seat != NO_SEAT

    @property
    def missing(self) -> int:
        """Tokens still to compute before the next can be drawn."""
        return len(self.tokens) - self.computed

    def key(self, block: int, block_tokens: int) -> bytes:
        """The key of the block with this index, all of whose tokens are known."""
        keys = self.keys
        while len(keys) <= block:
            start = len(keys) * block_tokens
            keys.append(block_key(keys[-1] if keys else self.root, self.tokens[start : start + block_tokens]))
        return keys[block]
