"""`tessera.graph`, `runtime`, `dist`, `op`, and the front door itself."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_package import tiny_program, write_tiny

from tessera import dist, graph, op, runtime, server
from tessera.errors import CaptureInvalid, MeshUnavailable, ModelNotServed
from tessera_runtime.errors import DigestMismatch, InvalidRequest, NumericalError, PackageNotFound, TargetUnavailable

RANDOM = np.random.default_rng(3)


def loaded_after(code: str) -> set[str]:
    script = f"{code}\nimport sys\nprint(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    return set(done.stdout.split())


def test_the_front_door_is_light() -> None:
    assert not loaded_after("import tessera") & {"numpy", "msgspec", "yaml", "tokenizers", "starlette", "asyncio"}
    every = loaded_after("from tessera import server, runtime, graph, op, dist")
    assert not every & {"torch", "transformers", "xdsl", "llvmlite", "tokenizers", "starlette", "tessera_compiler"}


def test_unknown_names_are_attribute_errors() -> None:
    import tessera

    with pytest.raises(AttributeError, match="no attribute 'lmm'"):
        _ = tessera.lmm


def test_a_package_opens_with_or_without_its_suffix(package: Path, tmp_path: Path) -> None:
    module = server.load_package(str(package).removesuffix(".tspkg"))
    assert module.path == package and module.name == "tiny"
    assert str(module.entry) == "main.decode_graph"
    assert module.program("reference")["limits"]["max_model_len"] == 64
    assert set(module.weights()) == {"embedding", "head"}
    with pytest.raises(PackageNotFound):
        server.load_package(tmp_path / "none")
    spoilt = write_tiny(tmp_path / "spoilt.tspkg")
    path = spoilt / "graph_ir.tssa"
    path.write_bytes(path.read_bytes().replace(b"module", b"mOdule"))
    with pytest.raises(DigestMismatch):
        server.load_package(spoilt)


def test_capture_tells_the_buckets(compiled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = server.load_package(compiled)
    found = graph.capture(module.entry, bucket_by=["seq_len", "head_dim"])
    limit = module.manifest.memory.max_tokens
    assert found.target == "cpu" and found.processor_class and found.entry == "main.decode_graph"
    assert found.buckets["head_dim"] == (16,) and found.buckets["seq_len"][-1] == limit
    assert len(found.buckets["seq_len"]) > 1 and found.bucket(1) == found.buckets["seq_len"][0]
    assert found.bucket(limit) == limit
    with pytest.raises(CaptureInvalid, match=f"1 to {limit}"):
        found.bucket(limit + 1)
    monkeypatch.setattr(runtime, "target_for", lambda module: None)
    with pytest.raises(TargetUnavailable, match="cpu"):
        graph.capture(module.entry)


@pytest.mark.parametrize("bucket_by", [["batch"], [], "seq_len"])
def test_capture_refuses_other_axes(package: Path, bucket_by: Any) -> None:
    with pytest.raises(CaptureInvalid, match="seq_len"):
        graph.capture(server.load_package(package).entry, bucket_by=bucket_by)


def test_capture_refuses_what_is_no_entry(package: Path) -> None:
    with pytest.raises(CaptureInvalid, match="entry"):
        graph.capture("main.decode_graph")  # type: ignore[arg-type]
    module = server.load_package(package)
    with pytest.raises(CaptureInvalid, match="no entry 'main.other'"):
        graph.capture(server.Entry("main.other", module))


def test_capabilities_are_plain_and_true(package: Path) -> None:
    found = runtime.capabilities()
    assert found.backends[-1] == "reference" and found.cores >= found.physical_cores >= 1
    assert found.memory_bytes >= found.available_memory_bytes > 0
    assert found.mesh == {"tp": 1, "pp": 1, "dp": 1} and found.devices[0].kind == "cpu"
    assert json.loads(json.dumps(found.as_dict()))["machine"] == found.machine
    assert found.runs(server.load_package(package))


def test_a_package_for_another_machine_does_not_run(tmp_path: Path) -> None:
    program = tiny_program("cpu")
    program["classes"] = {"riscv64": {**program["classes"].pop("x86-64-v3"), "features": []}}
    other = write_tiny(tmp_path / "other.tspkg", programs={"cpu": program})
    assert not runtime.capabilities().runs(server.load_package(other))


def test_meshes_are_descriptions() -> None:
    mesh = dist.Mesh.parse("tp=2, dp=3")
    assert (mesh.size, str(mesh)) == (6, "tp=2,pp=1,dp=3")
    places = [tuple(mesh.coordinates(rank).values()) for rank in range(6)]
    assert places == sorted(set(places)) and len(places) == 6
    assert list(mesh.shape.values()) == [3, 1, 2]
    for text in ("tp", "tp=0", "tp=1,tp=2", "xp=1", ""):
        with pytest.raises(InvalidRequest):
            dist.Mesh.parse(text)
    with pytest.raises(InvalidRequest, match="0 to 5"):
        mesh.coordinates(6)


def test_only_the_mesh_of_one_is_there() -> None:
    assert dist.initialize() == dist.initialize(dist.Mesh()) == dist.Mesh()
    assert (dist.world_size(), dist.rank()) == (1, 0)
    with pytest.raises(MeshUnavailable, match="2 devices"):
        dist.initialize(dist.Mesh(tp=2))


def test_collectives_over_one_rank() -> None:
    values = RANDOM.standard_normal((2, 3))
    for result in (dist.all_reduce(values), dist.all_gather(values, dimension=1), dist.reduce_scatter(values)):
        assert (result == values).all() and not np.shares_memory(result, values)
    dist.barrier()
    with pytest.raises(InvalidRequest, match="tp, pp, dp"):
        dist.all_reduce(values, axis="xp")
    with pytest.raises(InvalidRequest, match="2 dimensions"):
        dist.all_gather(values, dimension=2)


def naive_attention(q: Any, k: Any, v: Any, *, causal: bool, window: int, softcap: float, scale: float) -> Any:
    result = np.zeros((len(q), q.shape[1], v.shape[2]))
    shared = q.shape[1] // k.shape[1]
    for token in range(len(q)):
        place = len(k) - len(q) + token
        seen = [p for p in range(len(k)) if (p <= place or not causal) and (not window or place - p < window)]
        for head in range(q.shape[1]):
            scores = np.array([q[token, head] @ k[p, head // shared] * scale for p in seen])
            if softcap:
                scores = softcap * np.tanh(scores / softcap)
            weights = np.exp(scores - scores.max())
            result[token, head] = weights @ v[seen, head // shared] / weights.sum()
    return result


@pytest.mark.parametrize("tokens", [1, 5, 150])
@pytest.mark.parametrize(
    "options", [{}, {"window": 7}, {"softcap": 2.0}, {"causal": False}, {"scale": 0.5, "window": 70}]
)
def test_flash_attention_is_attention(tokens: int, options: dict[str, Any]) -> None:
    q, k, v = (RANDOM.standard_normal(shape) for shape in ((tokens, 4, 8), (150, 2, 8), (150, 2, 5)))
    wanted = naive_attention(
        q, k, v, **{"causal": True, "window": 0, "softcap": 0.0, "scale": 1 / math.sqrt(8), **options}
    )
    np.testing.assert_allclose(op.flash_attention(q, k, v, **options), wanted, rtol=2e-5, atol=2e-6)


def test_operations_mean_what_they_say() -> None:
    x = RANDOM.standard_normal((4, 2, 6)).astype(np.float32)
    weight, bias = RANDOM.standard_normal((2, 6)).astype(np.float32)
    mean_square = (x.astype(np.float64) ** 2).mean(-1, keepdims=True)
    np.testing.assert_allclose(op.rms_norm(x, weight, eps=1e-3), x / np.sqrt(mean_square + 1e-3) * weight, rtol=1e-5)
    centred = x - x.mean(-1, keepdims=True)
    normed = centred / np.sqrt(centred.var(-1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(op.layer_norm(x, weight, bias), normed * weight + bias, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(op.softmax(x).sum(-1), 1, rtol=1e-6)
    np.testing.assert_allclose(op.silu(x), x / (1 + np.exp(-x)), rtol=1e-5)
    np.testing.assert_allclose(
        op.gelu(x),
        x * [[[0.5 * (1 + math.erf(e / math.sqrt(2))) for e in r] for r in t] for t in x],
        rtol=1e-4,
        atol=1e-6,
    )
    assert np.abs(op.gelu(x, tanh=True) - op.gelu(x)).max() < 2e-3
    np.testing.assert_allclose(op.linear(x, RANDOM.standard_normal((3, 6)), np.ones(3)).shape, (4, 2, 3))
    assert (op.embedding(np.array([2, 0]), x[:, 0]) == x[[2, 0], 0]).all()
    turned = op.rope(x, np.arange(4))
    np.testing.assert_allclose(np.linalg.norm(turned, axis=-1), np.linalg.norm(x, axis=-1), rtol=1e-5)
    assert (turned[0] == x[0]).all() and not np.allclose(turned[1], x[1])
    assert not np.allclose(op.rope(x, np.arange(4), interleaved=True), turned)
    assert op.evaluate("cast", x, dtypes=("i32",)).dtype == np.int32  # type: ignore[union-attr]
    assert {"rms_norm", "softcap", "gated"} <= set(op.names())


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: op.evaluate("rms_nrm", np.ones(3)), "rms_norm"),
        (lambda: op.evaluate("rms_norm", np.ones(3), eps=1e-5), "weight_offset"),
        (lambda: op.evaluate("softmax", np.ones(3), axis=1), "no attribute"),
        (lambda: op.evaluate("add", np.ones(3)), "2 operands"),
        (lambda: op.evaluate("add", np.ones(3), np.ones(2)), "shapes"),
        (lambda: op.evaluate("softcap", np.ones(3), cap="x"), "cannot be 'x'"),
        (lambda: op.linear(np.ones(3), np.ones((2, 2))), "linear needs"),
        (lambda: op.embedding(np.array([5]), np.ones((2, 2))), "0 to 1"),
        (lambda: op.rope(np.ones((2, 1, 3)), np.arange(2)), "even dim"),
        (lambda: op.layer_norm(np.ones(3), None, np.ones(3)), "weight"),
        (lambda: op.flash_attention(np.ones((2, 3, 4)), np.ones((2, 2, 4)), np.ones((2, 2, 4))), "multiple"),
        (lambda: op.flash_attention(*[np.ones((2, 2, 4))] * 3, window=-1), "positive"),
    ],
)
def test_operations_refuse_what_they_cannot_do(call: Any, said: str) -> None:
    with pytest.raises(InvalidRequest, match=said):
        call()


def test_numerics_are_checked() -> None:
    good = np.ones((2, 2), np.float16)
    assert op.check_numerics(good) is good
    assert op.check_numerics(np.array([1, 2])).tolist() == [1, 2]
    with pytest.raises(NumericalError, match=r"1 are NaN and 1 infinite; the first is at \(0, 1\)"):
        op.check_numerics(np.array([[1, math.nan], [math.inf, 2]]), "logits")


def test_sessions_outside_of_an_application(compiled: Path) -> None:
    messages = [{"role": "user", "content": "The"}]
    with server.scheduler().session(model=server.load_package(compiled)) as session:
        pieces = list(session.generate(messages, max_tokens=3, temperature=0, ignore_eos=True))
        assert session.finish is not None and session.finish.completion_tokens == 3 and "".join(pieces)
        with pytest.raises(InvalidRequest, match="temperature"):
            list(session.generate(messages, temperature=9))
        with pytest.raises(InvalidRequest, match="no sampling field 'temprature'"):
            list(session.generate(messages, temprature=1))
        with pytest.raises(InvalidRequest, match="described properly"):
            list(session.generate(messages, max_tokens="three"))  # type: ignore[arg-type]
    with pytest.raises(InvalidRequest, match="over"):
        list(session.generate(messages))
    with pytest.raises(ModelNotServed, match="nobody"):
        server.scheduler().session(model="nobody")


def test_schedulers_are_honest() -> None:
    with pytest.raises(InvalidRequest, match="continuous_batch"):
        server.scheduler(policy="fifo")
    with pytest.raises(InvalidRequest, match="positive"):
        server.scheduler(target_p99_ms=-1)
    with pytest.warns(UserWarning, match="not yet active"):
        assert server.scheduler(target_p99_ms=150).target_p99_ms == 150
