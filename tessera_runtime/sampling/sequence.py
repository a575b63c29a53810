"""What the sampler has to know of one answer: its parameters, the tokens so far, and its own random numbers."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from tessera_runtime.sampling.parameters import SamplingParameters
from tessera_runtime.sampling.random_numbers import uniforms

DRAWS_AT_ONCE = 64


class TokenTally:
    """Tokens that were seen and how often, in arrays that grow: a step looks at all of them and adds one."""

    def __init__(self, tokens: Iterable[int] = ()) -> None:
        self._place: dict[int, int] = {}
        self._tokens = np.empty(64, np.int64)
        self._times = np.empty(64, np.float32)
        for token in tokens:
            self.add(token)

    def add(self, token: int) -> None:
        place = self._place.get(token)
        if place is not None:
            self._times[place] += 1.0
            return
        place = len(self._place)
        if place == len(self._tokens):
            self._tokens = np.concatenate([self._tokens, np.empty_like(self._tokens)])
            self._times = np.concatenate([self._times, np.empty_like(self._times)])
        self._place[token] = place
        self._tokens[place] = token
        self._times[place] = 1.0

    def __len__(self) -> int:
        return len(self._place)

    @property
    def tokens(self) -> NDArray[np.int64]:
        return self._tokens[: len(self._place)]

    @property
    def times(self) -> NDArray[np.float32]:
        return self._times[: len(self._place)]


class SampledSequence:
    """One answer as the sampler sees it."""

    def __init__(
        self, parameters: SamplingParameters, prompt_ids: Iterable[int] = (), output_ids: Iterable[int] = ()
    ) -> None:
        self.parameters = parameters
        self.generated = 0
        """Tokens drawn so far, and so the index of the next draw."""
        self.changes_logits = bool(parameters.logit_bias) or parameters.penalizes
        self._repeats = parameters.repetition_penalty != 1.0
        self._said = TokenTally()
        self._seen = TokenTally(prompt_ids if self._repeats else ())
        self._bias_tokens = np.fromiter(parameters.logit_bias.keys(), np.int64)
        self._bias_values = np.fromiter(parameters.logit_bias.values(), np.float32)
        self._draws: NDArray[np.float64] = np.empty(0, np.float64)
        self._first_draw = 0
        for token in output_ids:
            self.append(token)

    def append(self, token: int) -> None:
        """Notes a token of the answer. Every drawn token must be appended before the next is drawn."""
        self.generated += 1
        if self.parameters.penalizes:
            self._said.add(token)
            if self._repeats:
                self._seen.add(token)

    def penalize(self, row: NDArray[np.float32]) -> None:
        """Applies logit_bias and the penalties to a row, in place."""
        parameters = self.parameters
        if len(self._bias_tokens):
            row[self._bias_tokens] += self._bias_values
        if self._repeats:
            seen = self._seen.tokens
            values = row[seen]
            factor = np.float32(parameters.repetition_penalty)
            row[seen] = np.where(values < 0, values * factor, values / factor)
        if len(self._said) and (parameters.frequency_penalty or parameters.presence_penalty):
            penalty = np.float32(parameters.frequency_penalty) * self._said.times
            row[self._said.tokens] -= penalty + np.float32(parameters.presence_penalty)

    def draw(self, ahead: int = 0) -> float:
        """The uniform number that decides the next token: a function of seed, stream and `generated`. With `ahead`, the
        one after so many tokens that are drawn and not yet appended."""
        number = self.generated + ahead
        index = number - self._first_draw
        if not 0 <= index < len(self._draws):
            self._first_draw, index = number, 0
            self._draws = uniforms(self.parameters.seed, self.parameters.stream, number, DRAWS_AT_ONCE)
        return float(self._draws[index])
