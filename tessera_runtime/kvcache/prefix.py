"""Names the contents of blocks: the key of a block covers its tokens, all tokens before them, and the tenant."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from hashlib import blake2b

KEY_BYTES = 32


def root_key(tenant: str) -> bytes:
    """What stands before the first block of a tenant's prompts: no tenant can find blocks of another."""
    return blake2b(tenant.encode("utf-8", "surrogatepass"), digest_size=KEY_BYTES, person=b"tessera-tenant").digest()


def block_key(parent: bytes, tokens: Sequence[int]) -> bytes:
    """The key of a full block; `parent` is that of the block before it, or the root."""
    return blake2b(parent + array("i", tokens).tobytes(), digest_size=KEY_BYTES, person=b"tessera-block").digest()
