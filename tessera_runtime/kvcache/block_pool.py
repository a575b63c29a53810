"""The blocks of the KV cache: who holds which, and which are kept for reuse.

A block is in exactly one of three states: *free*; *held* by one or more requests; or *idle*, held by nobody but still
named by the key of its contents. Idle blocks are given out again, the least recently used first, when no free ones are
left. Only full blocks get a key, and a block with a key is never written again: whoever needs another continuation
writes a block of its own. So what several requests hold together needs no copy when one of them goes on.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence

from tessera_runtime.errors import ExecutionError


class CacheCorrupt(ExecutionError):
    """The books of the KV cache contradict one another: a defect of Tessera."""

    code = "cache-corrupt"


class BlockPool:
    """Counts references; knows nothing of tokens, tenants or memory."""

    def __init__(self, blocks: int) -> None:
        self.total = blocks
        # The lowest free block is given out first: memory that was never touched stays untouched.
        self._free = list(range(blocks - 1, -1, -1))
        self._holders = [0] * blocks
        self._key_of: list[bytes | None] = [None] * blocks
        self._block_of: dict[bytes, int] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()

    @property
    def available(self) -> int:
        """Blocks that can be allocated now."""
        return len(self._free) + len(self._idle)

    @property
    def idle(self) -> int:
        return len(self._idle)

    @property
    def held(self) -> int:
        return self.total - len(self._free) - len(self._idle)

    def allocate(self, count: int) -> list[int]:
        """Blocks that the caller alone holds. There must be as many `available`."""
        if count > self.available:
            raise CacheCorrupt(f"{count} blocks were asked for, and {self.available} are available.")
        taken = []
        for _ in range(count):
            if self._free:
                block = self._free.pop()
            else:
                block, _ = self._idle.popitem(last=False)
                self.forget(block)
            self._holders[block] = 1
            taken.append(block)
        return taken

    def find(self, key: bytes) -> int | None:
        """The block with these contents, held or idle."""
        return self._block_of.get(key)

    def is_idle(self, block: int) -> bool:
        return block in self._idle

    def hold(self, block: int) -> None:
        """One more holder of a block that was found."""
        if not self._holders[block]:
            if block not in self._idle:
                raise CacheCorrupt(f"Block {block} is free and cannot be shared.")
            del self._idle[block]
        self._holders[block] += 1

    def release(self, blocks: Sequence[int]) -> None:
        """One holder less of each. The last blocks of a sequence are reused before its first, without which they are
        worth nothing.
        """
        for block in reversed(blocks):
            if self._holders[block] < 1:
                raise CacheCorrupt(f"Block {block} was released more often than it was held.")
            self._holders[block] -= 1
            if not self._holders[block]:
                if self._key_of[block] is None:
                    self._free.append(block)
                else:
                    self._idle[block] = None

    def publish(self, block: int, key: bytes) -> None:
        """Lets others find a full block. Where another block has the key already, that one stays the one to find."""
        if key not in self._block_of and self._key_of[block] is None:
            self._block_of[key] = block
            self._key_of[block] = key

    def forget(self, block: int) -> None:
        """Nobody finds this block any more."""
        key = self._key_of[block]
        if key is not None:
            self._key_of[block] = None
            del self._block_of[key]
            if block in self._idle:
                del self._idle[block]
                self._free.append(block)

    def check_integrity(self, tables: Iterable[Sequence[int]]) -> None:
        """Raises `CacheCorrupt` unless the counts are those of `tables`, the blocks of every request that holds any."""
        held: Counter[int] = Counter()
        for table in tables:
            if len(set(table)) != len(table):
                raise CacheCorrupt("A request holds a block twice.")
            held.update(table)
        free = set(self._free)
        for block in range(self.total):
            states = (held[block] > 0) + (block in free) + (block in self._idle)
            if states != 1 or held[block] != self._holders[block]:
                raise CacheCorrupt(
                    f"Block {block} is in {states} states, with {self._holders[block]} holders in the books and "
                    f"{held[block]} in fact."
                )
            key = self._key_of[block]
            if key is not None and (self._block_of.get(key) != block or block in free):
                raise CacheCorrupt(f"Block {block} has a key that does not lead to it.")
        if len(free) != len(self._free) or len(self._block_of) != sum(key is not None for key in self._key_of):
            raise CacheCorrupt("A block is in the free list twice, or a key leads nowhere.")
