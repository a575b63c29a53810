"""Whatever arrives, is aborted, preempted, evicted or resumed: the books are right after every step, everybody is
answered exactly once, and each answer is the one that the request gets alone.
"""

from __future__ import annotations

from typing import Any

from driving import Answer, Driver, alone
from hash_executor import HashExecutor
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from msgspec.structs import replace

from tessera_runtime.engine.protocol import Submit
from tessera_runtime.sampling.parameters import SamplingParameters

# Few beginnings and few tenants, so that prompts share prefixes.
STEMS = [[], list(range(9)), list(range(16)), [5] * 13]
CONTEXT = 32
sampling = st.builds(
    SamplingParameters,
    temperature=st.sampled_from([0.0, 1.0, 1.5]),
    top_p=st.sampled_from([1.0, 0.7]),
    top_k=st.sampled_from([0, 5]),
    repetition_penalty=st.sampled_from([1.0, 1.2]),
    seed=st.integers(0, 3),
)


class EngineMachine(RuleBasedStateMachine):
    """Random users of one engine with a cache that is too small for all of them."""

    @initialize(
        blocks=st.integers(8, 24),
        batch=st.integers(4, 16),
        seats=st.integers(1, 4),
        reuse=st.booleans(),
        lanes=st.sampled_from([(4, 4, 4), (4, 2, 1), (1, 1, 1)]),
    )
    def start(self, blocks: int, batch: int, seats: int, reuse: bool, lanes: tuple[int, ...]) -> None:
        self.driver = Driver(
            HashExecutor(max_tokens=batch, max_model_len=CONTEXT),
            max_sequences=seats,
            cache_blocks=blocks,
            lane_seats=tuple(min(lane, seats) for lane in lanes),
            prefix_reuse=reuse,
        )
        self.submits: dict[str, Submit] = {}
        self.aborted: set[str] = set()
        self.expected: dict[str, Answer] = {}

    @rule(
        stem=st.sampled_from(STEMS),
        tail=st.lists(st.integers(0, 39), min_size=1, max_size=12),
        max_tokens=st.integers(1, 20),
        parameters=sampling,
        lane=st.integers(0, 2),
        tenant=st.sampled_from(["", "other"]),
        fields=st.fixed_dictionaries(
            {}, optional={"logprobs": st.integers(0, 3), "prompt_logprobs": st.just(True), "stop_ids": st.just([3, 7])}
        ),
        resumed=st.integers(0, 3),
    )
    def arrive(
        self,
        stem: list[int],
        tail: list[int],
        max_tokens: int,
        parameters: SamplingParameters,
        lane: int,
        tenant: str,
        fields: dict[str, Any],
        resumed: int,
    ) -> None:
        name = f"r{len(self.submits)}"
        submit = Submit(
            request_id=name,
            prompt_ids=stem + tail,
            max_tokens=max_tokens,
            sampling=parameters,
            lane=lane,
            tenant=tenant,
            **fields,
        )
        # An answer that another engine has begun: what it would have said so far is known.
        self.expected[name] = alone(submit, CONTEXT)
        begun = self.expected[name].ids[: resumed if resumed < len(self.expected[name].ids) else 0]
        self.submits[name] = replace(submit, resumed_ids=begun)
        self.driver.answers[name] = Answer()
        self.driver.core.submit(self.submits[name])

    @precondition(lambda self: self.submits)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.submits)))
        if not self.driver.answers[name].over:
            self.aborted.add(name)
        self.driver.core.abort(name)

    @rule(count=st.integers(1, 6))
    def work(self, count: int) -> None:
        for _ in range(count):
            if self.driver.core.has_work:
                before = self.driver.executor.computed
                self.driver.step()
                assert self.driver.executor.computed - before <= self.driver.executor.limits.max_tokens

    @invariant()
    def books_are_right(self) -> None:
        if hasattr(self, "driver"):
            self.driver.core.check_integrity()

    def teardown(self) -> None:
        if not hasattr(self, "driver"):
            return
        for name, answer in self.driver.run().items():
            expected, begun = self.expected[name], len(self.submits[name].resumed_ids)
            if answer.finish_reason == "abort":
                assert name in self.aborted
                assert answer.ids == expected.ids[begun : begun + len(answer.ids)]
                continue
            assert (answer.ids, answer.finish_reason) == (expected.ids[begun:], expected.finish_reason)
            assert answer.error == expected.error
            assert answer.logprobs == expected.logprobs[begun:]
            assert answer.prompt_logprobs == (None if begun else expected.prompt_logprobs)


TestEngine = EngineMachine.TestCase
TestEngine.settings = settings(
    max_examples=60,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
