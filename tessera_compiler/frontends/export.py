"""A Hugging Face model's own code, as a graph of ATen operations, without its weights in memory."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.export import Dim, ExportedProgram
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from tessera_compiler.errors import CompileError, ExportFailed, InvalidCheckpoint
from tessera_compiler.frontends.attention_op import IMPLEMENTATION
from tessera_compiler.frontends.buffers import fix_rotary_embeddings, parameters_on_meta

_PREFIX = "model_."


@dataclass(frozen=True)
class ExportedModel:
    """What `torch.export` made of a model."""

    program: ExportedProgram
    model: PreTrainedModel
    """The model, on the meta device."""
    buffers: Mapping[str, torch.Tensor]
    """Values of the buffers that no checkpoint holds, by name."""
    shared: Mapping[str, str]
    """Parameters that are the same tensor as another one → the name under which a checkpoint holds it."""
    checkpoint_names: Mapping[str, str]
    """Name of each parameter and saved buffer → its name in a checkpoint."""


class _Step(torch.nn.Module):
    """The model as a function of one flat step: token ids, positions, and the rows whose logits are wanted."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model_ = model
        self.keeps_rows = "logits_to_keep" in inspect.signature(model.forward).parameters

    def forward(self, token_ids: torch.Tensor, positions: torch.Tensor, logit_rows: torch.Tensor) -> torch.Tensor:
        # An explicit mask keeps transformers from looking for packed sequences in the positions.
        inputs: dict[str, Any] = {
            "input_ids": token_ids[None],
            "attention_mask": torch.ones_like(token_ids)[None],
            "use_cache": False,
        }
        if self.keeps_rows:
            inputs["logits_to_keep"] = logit_rows
        logits: torch.Tensor = self.model_(**inputs, position_ids=positions[None]).logits[0]
        return logits if self.keeps_rows else logits[logit_rows]


def module_path(path: str) -> str:
    """The path of a module in the model, given its path in the exported program."""
    return path.removeprefix(_PREFIX.rstrip(".")).removeprefix(".")


def export(model_class: type[PreTrainedModel], config: PreTrainedConfig, max_model_len: int) -> ExportedModel:
    """Builds the model without weights, in float32, and exports one step of it.

    Raises ExportFailed, with torch's reason, if the model's code cannot be traced, and InvalidCheckpoint if the model
    cannot be built.
    """
    with torch.no_grad():
        with parameters_on_meta():
            build: Any = model_class._from_config
            try:
                model: PreTrainedModel = build(config, attn_implementation=IMPLEMENTATION, dtype=torch.float32).eval()
            except Exception as error:
                # Each model class fails in its own way on a configuration that contradicts itself.
                reason = " ".join(str(error).split()).rstrip(".")
                raise InvalidCheckpoint(
                    f"transformers cannot build {model_class.__name__} from this configuration: "
                    f"{type(error).__name__}: {reason}. Compare config.json with that of the model's source."
                ) from error
        fix_rotary_embeddings(model, max_model_len)
        saved = set(model.state_dict())
        buffers = {name: value.clone() for name, value in model.named_buffers() if name not in saved}
        model.to("meta")  # type: ignore[arg-type]
        model.tie_weights()
        arguments = (
            torch.zeros(7, dtype=torch.int64, device="meta"),
            torch.zeros(7, dtype=torch.int64, device="meta"),
            torch.zeros(3, dtype=torch.int64, device="meta"),
        )
        # The bound only has to lie above every length that a model branches on.
        shapes = {
            "token_ids": {0: Dim("T", min=2, max=1 << 30)},
            "positions": {0: Dim("T", min=2, max=1 << 30)},
            "logit_rows": {0: Dim("L", min=2, max=1 << 30)},
        }
        shapes["positions"] = shapes["token_ids"]
        try:
            program = torch.export.export(_Step(model), arguments, dynamic_shapes=shapes, strict=False)
            if any(_mutates(node) for node in program.graph.nodes):
                # Without a table of decompositions this only rewrites in-place operations into ones with new results.
                program = program.run_decompositions({})
        except CompileError:
            raise
        except Exception as error:
            raise _failure(error, model_class) from error
    return ExportedModel(program, model, buffers, _shared_parameters(model), _checkpoint_names(model))


def _mutates(node: torch.fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and bool(schema.is_mutable)


def _failure(error: Exception, model_class: type[PreTrainedModel]) -> CompileError:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, CompileError):
            return cause
        cause = cause.__cause__ or cause.__context__
    reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return ExportFailed(
        f"torch.export could not trace {model_class.__name__}: {reason.split('For more information')[0].strip()} "
        "Only models whose code treats all tokens of a step alike can be compiled."
    )


def _shared_parameters(model: PreTrainedModel) -> dict[str, str]:
    """Every name of a parameter that has several, and the one that a saved checkpoint keeps."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    dropped: Any = getattr(model, "all_tied_weights_keys", None) or {}
    shared: dict[str, str] = {}
    for group in names.values():
        kept = next((name for name in group if name not in dropped), group[0])
        shared.update({name: kept for name in group if len(group) > 1})
    return shared


def _checkpoint_names(model: PreTrainedModel) -> dict[str, str]:
    """The name in a checkpoint of each tensor of the model: transformers renames some while it loads."""
    names: dict[str, str] = {}
    for name, value in model.state_dict().items():
        saved = list(revert_weight_conversion(model, {name: value}))
        # A tensor that several are merged into has no one name; a model that uses it finds it missing.
        names[name] = saved[0] if len(saved) == 1 else name
    return names
