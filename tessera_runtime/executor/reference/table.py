"""Every operation that can stand in the body of a group, by its name."""

from __future__ import annotations

from tessera_runtime.executor.reference import attention, elementwise, movement, products, rows
from tessera_runtime.executor.reference.operation import Operation

OPERATIONS: dict[str, Operation] = {
    **elementwise.OPERATIONS,
    **movement.OPERATIONS,
    **rows.OPERATIONS,
    **products.OPERATIONS,
    **attention.OPERATIONS,
}
