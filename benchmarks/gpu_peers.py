"""The same kernels by torch on the same GPU, where it is installed. None of it is needed to measure Tessera; what
cannot be measured is named, not guessed.
"""

from __future__ import annotations

from typing import Any


def matmul_seconds(torch: Any, rows: int, columns: int, depth: int) -> float:
    """cuBLAS, bf16, on random numbers."""
    left = torch.randn(rows, depth, device="cuda", dtype=torch.bfloat16)
    right = torch.randn(columns, depth, device="cuda", dtype=torch.bfloat16)
    return _best(torch, lambda: left @ right.T)


def attention_seconds(torch: Any, tokens: int, heads: int, key_heads: int, width: int) -> float:
    """torch's best causal attention of one prompt."""
    make = torch.randn
    query = make(1, heads, tokens, width, device="cuda", dtype=torch.bfloat16)
    key, value = (make(1, key_heads, tokens, width, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    key, value = (each.repeat_interleave(heads // key_heads, dim=1) for each in (key, value))
    attend = torch.nn.functional.scaled_dot_product_attention
    return _best(torch, lambda: attend(query, key, value, is_causal=True))


def _best(torch: Any, work: Any, repeats: int = 20, rounds: int = 5) -> float:
    """Seconds of one run of many in a row, in the best of some rounds. One run alone would be charged with the time
    that the host takes to queue it."""
    for _ in range(3):
        work()
    times = []
    for _ in range(rounds):
        first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        first.record()
        for _ in range(repeats):
            work()
        last.record()
        torch.cuda.synchronize()
        times.append(first.elapsed_time(last) / 1000 / repeats)
    return min(times)
