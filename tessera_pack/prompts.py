"""The prompts that evidence is measured on: different kinds of text, of 32 to 256 tokens."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

LENGTHS = (32, 48, 64, 96, 128, 160, 208, 256)

TEXTS = (
    "The capital of France is Paris, and the river that runs through it is the Seine. Its bridges were built "
    "over nine centuries, the oldest of them, despite its name, being the one called the New Bridge.",
    "def running_mean(values, window):\n    total = sum(values[:window])\n    yield total / window\n    for "
    "old, new in zip(values, values[window:]):\n        total += new - old\n        yield total / window\n\n\n"
    "class Counter:\n    def __init__(self):\n        self.counts = {}\n\n    def add(self, key):\n        "
    "self.counts[key] = self.counts.get(key, 0) + 1\n",
    "Question: A train leaves at 14:25 and arrives at 17:10. How long does it travel?\nAnswer: From 14:25 to "
    "17:25 would be three hours; it arrives fifteen minutes earlier, so it travels two hours and forty-five "
    "minutes.\nQuestion: If twelve eggs cost 3.60, what do five cost?\nAnswer:",
    '{"order": 1042, "customer": {"name": "Ada", "city": "Turin"}, "lines": [{"sku": "A-7", "count": 3, '
    '"price": 4.5}, {"sku": "B-12", "count": 1, "price": 19.99}], "paid": true, "notes": null}\n',
    "Der Zug nach Basel hatte zwanzig Minuten Verspätung, und niemand auf dem Bahnsteig schien sich daran zu "
    "stören. Le lendemain, il faisait si froid que le lac avait gelé. La ciudad despertaba despacio, con olor "
    "a pan recién hecho.",
    "今天天气很好，我们打算去山上走走。山路不长，但是很陡，走到一半就能看见整个城市。東京から京都まで新幹線で二時間ほどです。"
    "Привет, мир! Это небольшой текст, написанный "
    "только для проверки.",
    "Dear colleagues,\n\n"
    "The measurements of last week are complete. In the first series the pressure rose from 1.2 to 3.4 bar "
    "within eight minutes; in the second it stayed below 2 bar. We think that the valve was not fully closed. "
    "Please check:\n\n"
    "1. the position of the lever,\n2. the seal of the flange,\n3. the reading of the gauge at rest.\n\n"
    "Kind regards\n",
    "Once, in a village between two hills, there lived a clockmaker who never looked at the time. When people "
    "asked her how late it was, she opened the window and listened: to the bakery, to the school, to the mill. "
    '"It is almost noon," she would say, and she was right, though no clock in her shop agreed with any other.',
)


def evidence_prompts(tokenizer: Tokenizer, vocab_size: int, longest: int) -> list[NDArray[np.int64]]:
    """Token ids of each prompt. A vocabulary in which the texts have too few tokens is filled up with ids drawn from
    a fixed seed."""
    prompts = []
    for index, length in enumerate(LENGTHS):
        ids: list[int] = []
        for step in range(len(TEXTS)):
            ids += tokenizer.encode(TEXTS[(index + step) % len(TEXTS)], add_special_tokens=not ids).ids
        known = np.asarray([id_ for id_ in ids if id_ < vocab_size], dtype=np.int64)
        if len(set(known.tolist())) < 8:
            known = np.random.default_rng(index).integers(0, vocab_size, length, dtype=np.int64)
        prompts.append(np.resize(known, min(length, longest)))
    return prompts


def prompt_digest(ids: NDArray[np.int64]) -> str:
    """Identifies a prompt in a manifest: SHA-256 of its ids as little-endian int32."""
    return hashlib.sha256(ids.astype("<i4").tobytes()).hexdigest()
