"""Finding the tensors that a graph needs in the checkpoint that holds them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from tessera_compiler.errors import MissingWeights

_SHOWN = 5


def resolve_weight_names(
    needed: Iterable[str],
    available: Collection[str],
    base_prefix: str = "",
    aliases: Mapping[str, tuple[str, ...]] | None = None,
) -> dict[str, str]:
    """The checkpoint's name for each needed tensor.

    Older checkpoints hold the bare model (`wte.weight`) or add a prefix to it (`transformer.wte.weight`): `base_prefix`
    (`base_model_prefix` of the model's class) is tried added and removed. `aliases` are other names of the same tensor,
    for tied weights. Raises MissingWeights, listing what was not found.
    """
    present = set(available)
    found: dict[str, str] = {}
    missing: list[str] = []
    for name in needed:
        for candidate in (name, *(aliases or {}).get(name, ())):
            spellings = [candidate]
            if base_prefix:
                spellings += [candidate.removeprefix(f"{base_prefix}."), f"{base_prefix}.{candidate}"]
            match = next((spelling for spelling in spellings if spelling in present), None)
            if match is not None:
                found[name] = match
                break
        else:
            missing.append(name)
    if missing:
        rest = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
        raise MissingWeights(
            f"the checkpoint lacks {', '.join(sorted(missing)[:_SHOWN])}{rest}, which the model needs; "
            f"it holds {len(present)} tensors. Check that config.json and the weights belong together."
        )
    return found
