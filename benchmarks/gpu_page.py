"""Writes a page like docs/benchmarks/h200.md from the results of a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.cpu.tables import percent, rate, ratio, table
from benchmarks.gpu_models import BASE_DTYPE
from benchmarks.gpu_results import GOALS, Results, shown

_METHOD = Path(__file__).with_name("gpu_method.md")
_LATER_PARTS = ("quantized", "sampling", "mixed")
"""Results of older runs lack these."""
_TITLES = {
    "decode": "decode of one user, share of bound",
    "layer": "time per layer beyond streaming its weights",
    "serving": "256 requests, share of bound",
    "against": "256 requests, against transformers",
    "idle": "device idle, decode of 256 users",
    "matmul": "products of a prompt of 2,048, against cuBLAS, the worst",
    "attention": "attention of a prompt of 2,048, against SDPA, the worst",
    "start": "start of the process to the first token",
}


def page(results: Results) -> str:
    """The whole page."""
    device = str(results.environment.get("device", "GPU"))
    parts = [
        f"# Tessera on one {device}",
        "Written by `python benchmarks/gpu.py page`; [benchmarks/README.md](../../benchmarks/README.md) says how to "
        "run it.",
        _circumstances(results),
        "## Goals",
        _goals(results),
        _failures(results),
    ]
    sections: list[tuple[str, list[str]]] = [
        ("Decode of one user", [_decode(results)]),
        ("Weights of fewer bits", [_quantized(results)]),
        ("Launches of a decoding step", list(_launches(results))),
        ("Products", [_products(results)]),
        ("Attention", [_attention(results)]),
        ("Serving", [_serving(results)]),
        ("A long prompt beside answers", list(_mixed(results))),
        ("Drawing", list(_sampling(results))),
        ("Against transformers", list(_rival(results))),
        ("Start", [_start(results)]),
    ]
    for title, texts in sections:
        if any(texts):
            parts += [f"## {title}", *texts]
    parts += [_method(results)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _method(results: Results) -> str:
    """How it was measured; parts that came later than others are left out where they were not."""
    lines = _METHOD.read_text(encoding="utf-8").strip().split("\n- ")
    absent = tuple(f"*{part}*" for part in _LATER_PARTS if not _raw(results, f"{part} "))
    return "\n- ".join(line for line in lines if not line.startswith(absent))


def _circumstances(results: Results) -> str:
    found = results.environment
    device = [str(found.get("device", "an unknown device"))]
    if "capability" in found:
        device.append("capability " + ".".join(str(each) for each in found["capability"]))
    if "memory" in found:
        device.append(f"{found['memory'] / 2**30:.0f} GiB")
    if "driver" in found:
        device.append(f"driver for CUDA {found['driver'] // 1000}.{found['driver'] % 1000 // 10}")
    versions = ", ".join(f"{name} {version}" for name, version in found.get("versions", {}).items())
    texts = [f"{found['when']}." if "when" in found else "", f"{', '.join(device)}."]
    texts += [f"Host: {found['host']}." if "host" in found else ""]
    texts += [f"Python {found['python']}, {versions}." if versions else ""]
    texts += [f"Random weights of seed {found['seed']}." if "seed" in found else ""]
    lines = [" ".join(text for text in texts if text)]
    programs = [_program(name, built) for name, built in found.get("programs", {}).items()]
    if programs:
        lines.append("Programs:\n\n" + "\n".join(programs))
    bounds = []
    if "copy bandwidth" in results.figures:
        bounds.append(f"{results.figures['copy bandwidth'] / 1e12:.2f} TB/s copied within the device")
    if "cublas bf16" in results.figures:
        bounds.append(f"{results.figures['cublas bf16'] / 1e12:,.0f} TFLOP/s of cuBLAS in bf16")
    lines.append(f"Bounds of this run: {', '.join(bounds) or 'not measured'}.")
    return "\n\n".join(lines)


def _program(name: str, built: Mapping[str, Any]) -> str:
    facts = [str(built[key]) for key in ("dtype", "target") if key in built]
    facts += [f"Triton {built['triton']}"] if "triton" in built else []
    facts += [f"{built['tuned']} of {built['products']} products tuned"] if "products" in built else []
    return f"- {name}: {', '.join(facts)}"


def _goals(results: Results) -> str:
    rows = []
    for name, goal in GOALS.items():
        kind, model = _named(name)
        value = results.figures.get(name)
        cells = [_TITLES[kind], model or "all", "–" if value is None else shown(name, value)]
        rows.append([*cells, shown(name, goal.must), shown(name, goal.aim), _cell(results.verdict(name))])
    return table(["figure", "model", "measured", "must", "aim", ""], rows)


def _named(name: str) -> tuple[str, str]:
    """The kind of a figure, and the model it is of."""
    kind, _, rest = name.partition(" ")
    return kind, rest.rpartition(" ")[2]


def _failures(results: Results) -> str:
    if not results.failures:
        return ""
    lines = [f"- {name}: {' '.join(reason.split())}" for name, reason in results.failures.items()]
    return "Not measured, or not to the end:\n\n" + "\n".join(lines)


def _decode(results: Results) -> str:
    rows = []
    for model, raw in _raw(results, "decode "):
        layer = results.figures.get(f"layer {model}")
        rows.append(
            [
                model,
                *(_milliseconds(raw[key]) for key in ("wall", "device", "bound")),
                f"{raw['bytes'] / 1e9:.2f}",
                percent(raw["bound"] / raw["wall"]),
                "–" if layer is None else f"{layer * 1e6:.1f}",
                rate(1 / raw["wall"]),
            ]
        )
    heads = ["", "ms a step", "of the device", "bound", "GB read", "share of bound", "µs a layer beyond", "tokens/s"]
    return table(heads, rows) if rows else ""


def _launches(results: Results) -> Iterator[str]:
    models = _raw(results, "launches ")
    if models:
        yield "Microseconds of each launch, timed alone, with the users given; launches of every layer first."
    for model, raw in models:
        yield f"### {model}"
        yield _launch_table(int(raw["layers"]), raw["users"])


def _launch_table(layers: int, users: Mapping[str, Any]) -> str:
    groups: dict[str, dict[str, Any]] = {}
    for count, step in users.items():
        for each in step["groups"]:
            groups.setdefault(each["group"], {})[count] = each
    # One launch that is missing, as the first layer's norm, does not make a group one of the head.
    often = {name for name, by in groups.items() if max(each["launches"] for each in by.values()) >= layers - 1}
    rows = []
    for name in sorted(groups, key=lambda each: each not in often):
        some = next(iter(groups[name].values()))
        shape = "×".join(str(each) for each in some["shape"]) or "–"
        row = [f"{name}: {_cell(some['source'])}", shape, str(some["launches"])]
        for count in users:
            each = groups[name].get(count)
            row.append("–" if each is None else f"{each['seconds'] / each['launches'] * 1e6:.2f}")
        rows.append(row)
    sums, steps = ["a layer, sum of its launches", "–", "–"], ["a step on the device, over the layers", "–", "–"]
    for step in users.values():
        sums.append(f"{sum(each['seconds'] for each in step['groups'] if each['group'] in often) / layers * 1e6:.2f}")
        steps.append(f"{step['step'] / layers * 1e6:.2f}")
    heads = [f"{count} {'user' if count == '1' else 'users'}" for count in users]
    return table(["launch", "matrix", "a step", *heads], [*rows, sums, steps])


def _products(results: Results) -> str:
    rows = []
    for model, raw in _raw(results, "kernels "):
        for each in raw:
            if _kind_of(each) == "linear":
                rows.append([model, "×".join(f"{size}" for size in each["shape"]), *_compared(each)])
    heads = ["", "rows × outputs × depth", "µs", "TFLOP/s", "cuBLAS µs", "share"]
    return table(heads, rows) if rows else ""


def _attention(results: Results) -> str:
    rows = []
    for model, raw in _raw(results, "kernels "):
        for each in raw:
            if _kind_of(each) == "attention" and "torch" in each:
                rows.append([model, "×".join(f"{size}" for size in each["shape"]), *_compared(each)])
    heads = ["", "tokens × heads × width", "µs", "TFLOP/s", "SDPA µs", "share"]
    return table(heads, rows) if rows else ""


def _kind_of(row: Mapping[str, Any]) -> str:
    return str(row.get("kind") or row["group"].partition("_")[0])


def _compared(row: Mapping[str, Any]) -> list[str]:
    theirs = row.get("torch")
    return [
        f"{row['seconds'] * 1e6:.1f}",
        f"{row['flops_per_second'] / 1e12:,.0f}",
        "–" if theirs is None else f"{theirs * 1e6:.1f}",
        "–" if theirs is None else percent(theirs / row["seconds"]),
    ]


def _serving(results: Results) -> str:
    rows = []
    for model, raw in _raw(results, "serving "):
        idle = results.figures.get(f"idle {model}")
        steady = results.raw.get(f"idle {model}", {})
        rows.append(
            [
                model,
                f"{raw['prompt_tokens']:,}",
                f"{raw['answer_tokens']:,}",
                f"{raw['seconds']:.2f}",
                f"{raw['bound']:.2f}",
                percent(raw["bound"] / raw["seconds"]),
                f"{raw['steps']:,}",
                rate(raw["answer_tokens"] / raw["seconds"]),
                _milliseconds(steady.get("wall")),
                "–" if idle is None else f"{idle:.1%}",
            ]
        )
    heads = [
        "",
        "tokens in",
        "out",
        "s",
        "bound",
        "share of bound",
        "steps",
        "tokens/s out",
        "ms a step of 256",
        "idle",
    ]
    return table(heads, rows) if rows else ""


def _quantized(results: Results) -> str:
    found = {(raw["model"], raw["dtype"]): raw["users"] for _, raw in _raw(results, "quantized ")}
    rows = []
    for (model, dtype), users in found.items():
        for count, each in users.items():
            base = found.get((model, BASE_DTYPE), {}).get(count)
            rows.append(
                [
                    f"{model}, {dtype}",
                    count,
                    *(_milliseconds(each[key]) for key in ("wall", "device", "bound")),
                    f"{each['bytes'] / 1e9:.2f}",
                    percent(each["bound"] / each["wall"]),
                    rate(int(count) / each["wall"]),
                    ratio(None if base is None else base["wall"] / each["wall"]),
                ]
            )
    heads = ["", "users", "ms a step", "of the device", "bound", "GB read", "share of bound", "tokens/s"]
    return table([*heads, f"× {BASE_DTYPE}"], rows) if rows else ""


def _mixed(results: Results) -> Iterator[str]:
    rows = []
    for model, raw in _raw(results, "mixed "):
        carrying, devices = raw["carrying"], raw["device_carrying"]
        rows.append(
            [
                f"{model}, {raw['users']} users, {raw['prompt']:,} tokens by {raw['chunk']:,}",
                _milliseconds(raw["alone"]),
                *(_milliseconds(each) for each in (carrying[0], carrying[-1])),
                ratio(max(carrying) / raw["alone"]),
                _milliseconds(raw["device_alone"]),
                *(_milliseconds(each) for each in (devices[0], devices[-1])),
                f"{(sum(carrying) - len(carrying) * raw['alone']) * 1e3:.1f}",
                f"{raw['first_token'] * 1e3:.1f}",
            ]
        )
    if rows:
        yield "Milliseconds of a step that gives each user a token: alone, and with a prompt's first and last chunk."
        heads = ["", "alone", "first", "last", "the longest, × alone", "of the device: alone", "first", "last"]
        yield table([*heads, "later for each user, in all", "to the prompt's first token"], rows)


def _sampling(results: Results) -> Iterator[str]:
    for model, raw in _raw(results, "sampling "):
        by_way: dict[str, dict[str, Any]] = {}
        for count, ways in raw["users"].items():
            for each in ways:
                by_way.setdefault(each["label"], {})[count] = each
        rows = []
        for label, by_users in by_way.items():
            left = next(iter(by_users.values()))["left"]
            row = [label, "–" if left is None else f"{left:,}"]
            for count in raw["users"]:
                each = by_users.get(count)
                row += ["–"] * 2 if each is None else [_milliseconds(each["step"]), f"{each['beyond'] * 1e6:+.1f}"]
            rows.append(row)
        heads = [
            head
            for count in raw["users"]
            for head in (f"ms a step, {count} {'user' if count == '1' else 'users'}", "µs beyond greedy")
        ]
        yield f"{model}, {raw['vocabulary']:,} tokens, times of the device."
        yield table(["", "tokens that may be drawn", *heads], rows)


def _rival(results: Results) -> Iterator[str]:
    for model, raw in _raw(results, "against transformers "):
        mine = results.raw.get(f"serving {model}", {})
        facts = raw.get("facts", {})
        if "setting" in raw:
            words = [f"transformers {facts.get('transformers', '')}".strip() + f", attention {facts.get('attention')}"]
            words.append(f"the fastest of its settings is {raw['setting']}")
            yield f"{model}: {'; '.join(words)}. {_extent(raw)}"
        rows = [["Tessera", "–", f"{mine['seconds']:.1f}", rate(mine["tokens_per_second"]), ""]] if mine else []
        for each in raw.get("tried", []):
            speed = each["tokens"] / each["seconds"] if each["seconds"] else None
            end = each["note"] or ("" if each["complete"] else "its time was up")
            time = f"{each['seconds']:.1f}"
            rows.append([f"transformers: {each['setting']}", str(each["done"]), time, rate(speed), _cell(end)])
        if mine and rows:
            rows[0][1] = str(raw.get("requests", "–"))
        yield table(["", "requests done", "s", "tokens/s out", ""], rows)


def _extent(raw: Mapping[str, Any]) -> str:
    """What the ratio is of, and whether it is of all the work."""
    text = f"The ratio is of {raw['ratio_of']}"
    if raw["complete"]:
        return f"{text}, all requests done; in time, transformers took {ratio(raw['times_of_seconds'])} as long."
    return (
        f"{text} so far: transformers had done {raw['done']} of {raw['requests']} requests in {raw['seconds']:.0f} s, "
        f"and would have needed more than {ratio(raw['times_of_seconds'])} the time in all."
    )


def _start(results: Results) -> str:
    lines = []
    for model, raw in _raw(results, "start "):
        rows = [[name, f"{seconds:.2f}"] for name, seconds in raw.items()]
        whole = results.figures.get(f"start {model}")
        if whole is not None:
            rows.append(["the interpreter, and its end", f"{max(0.0, whole - sum(raw.values())):.2f}"])
            rows.append(["all", f"{whole:.2f}"])
        lines.append(table([model, "s"], rows))
    return "\n\n".join(lines)


def _raw(results: Results, kind: str) -> list[tuple[str, Any]]:
    """Raw numbers of a kind, by model."""
    return [(name.removeprefix(kind), raw) for name, raw in results.raw.items() if name.startswith(kind)]


def _milliseconds(seconds: float | None) -> str:
    return "–" if seconds is None else f"{seconds * 1e3:.3f}"


def _cell(text: str) -> str:
    """Text that cannot end a cell of a table."""
    return " ".join(text.split()).replace("|", "/")
