"""What of a kernel comes before the wait for the launch before, and what keeps Triton from adding in another order."""

from __future__ import annotations

import re

from device_machine import plan_for

from tessera_compiler.targets.triton.emission import emit_source
from tessera_compiler.tile.builder import KernelBuilder
from tessera_compiler.tile.types import buffer_type


def text_of(kernel: object) -> str:
    return emit_source(kernel, dependent=True).text  # type: ignore[arg-type]


def test_what_no_launch_writes_is_read_before_the_wait() -> None:
    kernel = plan_for("llama", "bf16", ("cuda-sm90",)).lowered.kernels()["attention_0_singles16"]
    given = {f"b{kernel.buffers.index(each)}" for each in kernel.given_buffers}
    before, after = text_of(kernel).split("gdc_wait()")
    read_before = set(re.findall(r"tl\.load\((b\d+)", before))
    read_after = set(re.findall(r"tl\.load\((b\d+)", after))
    assert read_before and read_before <= given
    assert read_after - given, "the query comes from a launch before"
    assert "tl.store" not in before
    assert after.lstrip().startswith("gdc_launch_dependents()")


def test_a_buffer_that_may_be_written_is_read_after_the_wait() -> None:
    b = KernelBuilder("copies", ["T"], [buffer_type([None, 16], "f32")] * 3, given=(1,))
    row = b.program_id(0)
    tiles = [b.load(buffer, row, b.constant(0), (1, 16)) for buffer in b.buffers[:2]]
    b.store(b.binary("add", *tiles), b.buffers[2], row, b.constant(0))
    before, after = text_of(b.finish()).split("gdc_wait()")
    assert "tl.load(b1" in before and "tl.load(b0" not in before
    assert "tl.load(b0" in after


def test_a_sum_is_not_made_the_start_of_a_dot() -> None:
    """Triton would: `dot(a, b) + c` and `dot(a, b, c)` are the same to it, and round differently."""
    for rounds in (0, 1):
        b = KernelBuilder("sum_of_dot", ["T"], [buffer_type([None, 64], "bf16")] * 2 + [buffer_type([None, 16], "f32")])
        zero = b.constant(0)

        def dot(b: KernelBuilder = b) -> object:
            at = b.constant(0)
            left = b.load_block(b.buffers[0], at, at, (16, 64), row_step=1, lane_step=1)
            right = b.load_block(b.buffers[1], at, at, (64, 16), column_step=1, lane_row_step=1)
            return b.dot(left, right)

        start = b.full(2.0, (16, 16))
        if rounds:
            (product,) = b.loop(zero, b.constant(1), 1, [b.full(0.0, (16, 16))], lambda _, state: [dot()])  # type: ignore[list-item]
        else:
            product = dot()  # type: ignore[assignment]
        sums = [b.binary("add", start, product), b.binary("add", product, start)]
        for each in sums:
            b.store_block(each, b.buffers[2], zero, zero, row_step=1, lane_step=1)
        text = text_of(b.finish())
        assert len(re.findall(r"= c\d+ - \w+ \* -1\.0$", text, re.MULTILINE)) == 2, text
