"""The books of the KV cache: who holds what, what is kept, what is given up first."""

from __future__ import annotations

import pytest

from tessera_runtime.kvcache.block_pool import BlockPool, CacheCorrupt
from tessera_runtime.kvcache.prefix import block_key, root_key


def test_the_lowest_free_blocks_go_first_and_come_back() -> None:
    pool = BlockPool(4)
    first = pool.allocate(3)
    assert first == [0, 1, 2]
    assert (pool.held, pool.available) == (3, 1)
    pool.release(first)
    assert (pool.held, pool.available, pool.idle) == (0, 4, 0)
    assert pool.allocate(4) == [0, 1, 2, 3]


def test_a_published_block_is_found_and_shared_until_the_last_lets_go() -> None:
    pool = BlockPool(3)
    (block,) = pool.allocate(1)
    assert pool.find(b"k") is None
    pool.publish(block, b"k")
    assert pool.find(b"k") == block
    pool.hold(block)
    pool.check_integrity([[block], [block]])
    pool.release([block])
    assert pool.held == 1 and not pool.is_idle(block)
    pool.release([block])
    assert pool.held == 0 and pool.is_idle(block)
    pool.hold(block)
    pool.check_integrity([[block]])


def test_the_least_recently_used_is_given_up_first_and_the_end_of_a_sequence_before_its_beginning() -> None:
    pool = BlockPool(4)
    long, short = pool.allocate(2), pool.allocate(2)
    for number, block in enumerate(long + short):
        pool.publish(block, b"%d" % number)
    pool.release(long)
    pool.release(short)
    assert pool.allocate(1) == [long[1]]
    assert pool.find(b"1") is None and pool.find(b"0") == long[0]
    pool.hold(long[0])
    pool.release([long[0]])
    assert pool.allocate(3) == [short[1], short[0], long[0]]


def test_the_first_of_two_equal_blocks_stays_the_one_to_find() -> None:
    pool = BlockPool(2)
    one, other = pool.allocate(2)
    pool.publish(one, b"k")
    pool.publish(other, b"k")
    assert pool.find(b"k") == one
    pool.release([one, other])
    assert pool.idle == 1
    pool.check_integrity([])


@pytest.mark.parametrize("held", [True, False])
def test_a_forgotten_block_is_found_no_more(held: bool) -> None:
    pool = BlockPool(2)
    (block,) = pool.allocate(1)
    pool.publish(block, b"k")
    if not held:
        pool.release([block])
    pool.forget(block)
    assert pool.find(b"k") is None
    assert pool.idle == 0
    pool.check_integrity([[block]] if held else [])


def test_mistakes_are_noticed() -> None:
    pool = BlockPool(2)
    (block,) = pool.allocate(1)
    with pytest.raises(CacheCorrupt, match="2 blocks"):
        pool.allocate(2)
    with pytest.raises(CacheCorrupt, match="free and cannot be shared"):
        pool.hold(1)
    with pytest.raises(CacheCorrupt, match="0 in fact"):
        pool.check_integrity([])
    with pytest.raises(CacheCorrupt, match="twice"):
        pool.check_integrity([[block, block]])
    pool.release([block])
    with pytest.raises(CacheCorrupt, match="more often"):
        pool.release([block])


def test_keys_cover_tokens_their_order_all_before_them_and_the_tenant() -> None:
    root = root_key("")
    tokens = [1, 2, 3]
    key = block_key(root, tokens)
    others = [
        block_key(root, [1, 3, 2]),
        block_key(root, [1, 2, 4]),
        block_key(root_key("tenant"), tokens),
        block_key(key, tokens),
    ]
    assert len({key, *others}) == 5
    assert key == block_key(root_key(""), tokens) and len(key) == 32
