"""The same work by torch and transformers on the same GPU, where they are installed. None of it is needed to measure
Tessera; what cannot be measured is named, not guessed.
"""

from __future__ import annotations

import time
from typing import Any

from benchmarks.gpu_measure import USERS, lengths_of


def matmul_seconds(torch: Any, rows: int, columns: int, depth: int) -> float:
    """cuBLAS, bf16, on random numbers: the best of some runs."""
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


def _best(torch: Any, work: Any, repeats: int = 20) -> float:
    for _ in range(3):
        work()
    times = []
    for _ in range(repeats):
        first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        first.record()
        work()
        last.record()
        torch.cuda.synchronize()
        times.append(first.elapsed_time(last) / 1000)
    return min(times)


def transformers_serving_seconds(torch: Any, config: dict[str, Any], seed: int) -> float:
    """The requests of `gpu_measure.time_serving` through transformers' own continuous batching."""
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

    with torch.device("cuda"):
        model = AutoModelForCausalLM.from_config(
            AutoConfig.for_model(**config), dtype=torch.bfloat16, attn_implementation="paged|sdpa"
        ).eval()
    generation = GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=0, max_new_tokens=1024)
    manager = model.init_continuous_batching(generation_config=generation)
    manager.start()
    try:
        generator = torch.Generator().manual_seed(seed)
        began = time.perf_counter()
        for number, (prompt, answer) in enumerate(lengths_of(seed)):
            ids = torch.randint(0, 10_000, (prompt,), generator=generator).tolist()
            manager.add_request(ids, request_id=str(number), max_new_tokens=answer)
        done = 0
        while done < USERS:
            result = manager.get_result(timeout=1)
            if result is not None and result.is_finished():
                done += 1
            if time.perf_counter() - began > 400:
                raise TimeoutError(f"{done} of {USERS} requests after 400 s")
        return time.perf_counter() - began
    finally:
        manager.stop(block=True)
