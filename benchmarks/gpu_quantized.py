"""Decoding with weights of fewer bits: what a step reads, and how long it takes."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.gpu_measure import CONTEXT, Bounds, blocks_of, open_model, time_decoding
from benchmarks.gpu_models import GpuModel

STEPS = {1: 200, 64: 100}
"""Of a run, by users."""


@dataclass(frozen=True)
class UsersTime:
    """Steps of some users, and what they have to read."""

    wall: float
    device: float
    bytes: float
    """Weights of a step, and the keys and values of all users."""
    bound: float
    """Seconds to read them."""

    @property
    def share(self) -> float:
        return self.bound / self.wall


def time_users(model: GpuModel, bounds: Bounds, seed: int) -> dict[int, UsersTime]:
    """By users, with an executor opened for it; closed whatever happens."""
    most = max(STEPS)
    found = {}
    # A batch leaves room for as much again as there is of each user.
    each = blocks_of(model, 2 * CONTEXT + max(STEPS.values()))
    with open_model(model, seed, most * each, most) as executor:
        for users, steps in STEPS.items():
            time_of = time_decoding(model, executor, users, CONTEXT, steps)
            size = model.step_bytes + users * CONTEXT * model.bytes_per_position
            found[users] = UsersTime(time_of.wall, time_of.device, size, bounds.seconds(size))
    return found
