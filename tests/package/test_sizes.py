from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera_runtime.package.sizes import exact_size, parse_size, readable_size


@pytest.mark.parametrize(
    ("text", "size"),
    [("2MiB", 2**21), ("512MB", 512 * 10**6), ("1.5 GiB", 3 * 2**29), ("8gib", 2**33), ("17", 17), ("0B", 0)],
)
def test_sizes_people_write(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "MiB", "-1MiB", "2XiB", "1e3", "1..5GB", "2 MiB 3", "٣MiB", "9" * 30])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match="expected a size such as"):
        parse_size(text)


@given(st.integers(0, 2**60))
def test_exact_size_is_exact(size: int) -> None:
    assert parse_size(exact_size(size)) == size


def test_readable_size() -> None:
    assert [readable_size(size) for size in (12, 1536, 134.5 * 2**20)] == ["12 B", "1.5 KiB", "134.5 MiB"]
    assert exact_size(720 * 1024) == "720KiB"
