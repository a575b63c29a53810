"""Weights of four bits: what Schedule IR refuses, and what a product of them means."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from xdsl.dialects.test import TestOp as MakerOp
from xdsl.ir import SSAValue
from xdsl.utils.exceptions import VerifyException

from tessera_compiler.graph.types import DYNAMIC, F32, I32, tensor
from tessera_compiler.schedule import dialect as schedule
from tessera_pack.quantize_groups import dequantize_groups, quantize_groups

DEPTH, OUTPUTS, GROUP = 80, 20, 32


def operands(**changed: Any) -> list[SSAValue]:
    groups = -(-DEPTH // GROUP)
    types = {
        "x": tensor((DYNAMIC, DEPTH), schedule.I8, "T"),
        "weight": tensor((OUTPUTS, DEPTH), schedule.U4),
        "scale": tensor((DYNAMIC, groups), F32, "T"),
        "total": tensor((DYNAMIC, groups), I32, "T"),
        "factors": tensor((OUTPUTS,), F32),
        "scales": tensor((OUTPUTS, groups), schedule.U8),
        "zeros": tensor((OUTPUTS, groups), schedule.U8),
    } | changed
    return [value for type_ in types.values() if type_ is not None for value in MakerOp(result_types=[type_]).results]


@pytest.mark.parametrize(
    ("changed", "group", "said"),
    [
        ({"zeros": None}, GROUP, "no product of i8 and u4 with 6 operands"),
        ({"scales": tensor((OUTPUTS, 2), schedule.U8)}, GROUP, "a weight of ui4 has a ui8 per row and group"),
        ({"zeros": tensor((OUTPUTS, 3), F32)}, GROUP, "a weight of ui4 has a ui8 per row and group"),
        ({}, 1024, "groups of more than 512 columns are not summed exactly"),
    ],
)
def test_what_is_no_product(changed: dict[str, Any], group: int, said: str) -> None:
    with pytest.raises(VerifyException, match=said):
        schedule.MatmulOp.make(*operands(**changed), group=group)


@pytest.mark.parametrize(
    ("element", "values", "said"),
    [
        (schedule.U4, {"layout": "panels_k4", "group": 32}, "a weight of ui4 lies in panels_k8 or matrix4, and no"),
        (schedule.U8, {"layout": "panels_k8", "group": 32}, "a weight of ui4 lies in panels_k8 or matrix4, and no"),
        (schedule.U4, {"layout": "panels_k8"}, "a weight of ui4 says how many columns share a scale"),
        (schedule.U8, {"layout": "panels_k1", "part": "means", "scales_of": "v"}, "the part is one of scales, zeros"),
        (schedule.U8, {"layout": "panels_k1", "part": "zeros"}, "of some other weight"),
    ],
)
def test_what_is_no_weight(element: Any, values: dict[str, Any], said: str) -> None:
    with pytest.raises(VerifyException, match=said):
        schedule.WeightOp.make(result=tensor((4, 32), element), name="w", sources=("w",), **values)


def test_rows_of_it_are_not_looked_up() -> None:
    ids = MakerOp(result_types=[tensor((DYNAMIC,), I32, "T")]).results[0]
    table = MakerOp(result_types=[tensor((OUTPUTS, DEPTH), schedule.U4)]).results[0]
    with pytest.raises(VerifyException, match="rows are not looked up in a table of ui4"):
        schedule.LookupOp.make(ids, table, offset=0)


def test_a_product_is_that_of_what_the_numbers_stand_for() -> None:
    random = np.random.default_rng(2)
    weight = random.standard_normal((OUTPUTS, DEPTH), np.float32)
    numbers, parameters = quantize_groups(weight, GROUP, "w")
    x = random.integers(-127, 128, (3, DEPTH)).astype(np.int8)
    scale = random.uniform(0.5, 2, (3, 3)).astype(np.float32)
    total = np.stack([x[:, at : at + GROUP].astype(np.int32).sum(axis=1) for at in range(0, DEPTH, GROUP)], axis=1)
    product = schedule.MatmulOp.make(*operands(), group=GROUP)
    parts = (parameters.factors, parameters.scales, parameters.zeros)
    (found,) = product.evaluate(x, numbers, scale, total.astype(np.int32), *parts)
    values = x * np.repeat(scale, GROUP, axis=1)[:, :DEPTH]
    wanted = values.astype(np.float64) @ dequantize_groups(numbers, parameters, GROUP).T.astype(np.float64)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4 * np.abs(wanted).max())
