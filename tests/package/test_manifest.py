"""The manifest: the structs, the schema, the YAML subset, and what must hang together."""

from __future__ import annotations

import copy
import json
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest
import yaml
from example_package import example_manifest
from hypothesis import given, settings
from hypothesis import strategies as st

from tessera_runtime.errors import AbiMismatch, DigestMismatch, ManifestInvalid, TesseraError, UnsafePath
from tessera_runtime.package import manifest as model
from tessera_runtime.package.strict_yaml import dump_strict, load_strict

SCHEMA = json.loads((Path(__file__).parents[2] / "schemas" / "manifest.schema.json").read_text(encoding="utf-8"))
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)


@pytest.fixture
def document(package: Path) -> dict[str, Any]:
    value = load_strict((package / "manifest.yaml").read_bytes())
    assert isinstance(value, dict)
    return value


def test_round_trip_is_the_same_bytes(package: Path) -> None:
    data = (package / "manifest.yaml").read_bytes()
    manifest = model.read_manifest(data)
    assert manifest == example_manifest(files=manifest.files)
    assert model.write_manifest(manifest) == data


def test_the_schema_is_a_schema_and_takes_the_manifest(document: dict[str, Any]) -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    VALIDATOR.validate(document)


def test_another_yaml_reader_sees_the_same(package: Path, document: dict[str, Any]) -> None:
    assert yaml.safe_load((package / "manifest.yaml").read_text(encoding="utf-8")) == document


def structs(kind: Any) -> Iterator[type[msgspec.Struct]]:
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        yield kind
        for hint in typing.get_type_hints(kind).values():
            yield from structs(hint)
    for argument in typing.get_args(kind):
        yield from structs(argument)


def test_structs_and_schema_agree() -> None:
    """Same keys, types, patterns and ranges. The schema may narrow what the reader checks by other means."""
    found = {kind.__name__: kind for kind in structs(model.Manifest)}
    assert set(found) == set(SCHEMA["$defs"])
    generated = msgspec.json.schema(model.Manifest)["$defs"]
    narrowed = {("Manifest", "format"), ("FileEntry", "path")}
    for name, kind in found.items():
        written = SCHEMA["$defs"][name]
        beside = ["checksum"] if kind is model.Manifest else []
        assert list(written["properties"]) == [field.encode_name for field in msgspec.structs.fields(kind)] + beside
        required = {field.encode_name for field in msgspec.structs.fields(kind) if field.required} | set(beside)
        assert set(written["required"]) == required
        assert written["additionalProperties"] is False
        for key, value in generated[name]["properties"].items():
            if (name, key) not in narrowed:
                plain = {part: text for part, text in written["properties"][key].items() if part != "description"}
                assert plain == {part: text for part, text in value.items() if part != "default"}, (name, key)


def edit(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def apply(document: dict[str, Any]) -> None:
        place: Any = document
        *parents, last = path.split(".")
        for part in parents:
            place = place[int(part)] if part.isdecimal() else place[part]
        if value is DELETE:
            del place[last]
        else:
            place[last] = value

    return apply


DELETE = object()

BAD_FIELDS: list[tuple[str, Any, str]] = [
    ("name", DELETE, "name"),
    ("name", "../x", "name"),
    ("name", 7, "name"),
    ("version", 1.1, "version"),
    ("version", "1.2", "version"),
    ("mesh.tp", 0, "mesh.tp"),
    ("mesh.tp", "2", "mesh.tp"),
    ("mesh.pp", True, "mesh.pp"),
    ("mesh.ep", 1, "ep"),
    ("dtypes", "int8", "dtypes"),
    ("kv_cache.pages", -1, "kv_cache.pages"),
    ("kv_cache.swap", "tape", "kv_cache.swap"),
    ("autotune.required", "yes", "autotune.required"),
    ("compat.api", "openai-v2", "compat.api"),
    ("memory.arena.bytes", -64, "memory.arena.bytes"),
    ("memory.kv.block_tokens", 0, "memory.kv.block_tokens"),
    ("memory.weights_bytes", 2**63, "memory.weights_bytes"),
    ("model.layers", None, "model.layers"),
    ("source.kind", "pickle", "source.kind"),
    ("source.config_sha256", "0" * 63, "source.config_sha256"),
    ("targets.0.abi", "1", "targets[0].abi"),
    ("evidence.top1_agreement", "all", "evidence.top1_agreement"),
    ("files.0.sha256", "a" * 65, "files[0].sha256"),
    ("files.0.sha256", "A" * 64, "files[0].sha256"),
    ("files.0.sha256", "a" * 64 + "\n", "files[0].sha256"),
    ("files.0.size", -1, "files[0].size"),
    ("files.0.mode", 755, "mode"),
    ("surprise", 1, "surprise"),
    ("format", "one", "format"),
]


@pytest.mark.parametrize(("path", "value", "named"), BAD_FIELDS)
def test_schema_and_reader_refuse_alike(document: dict[str, Any], path: str, value: Any, named: str) -> None:
    edit(path, value)(document)
    assert not VALIDATOR.is_valid(document)
    with pytest.raises(ManifestInvalid) as refusal:
        model.read_manifest(dump_strict(document))
    assert named in str(refusal.value)


@pytest.mark.parametrize(
    "path", ["../x", "/etc/passwd", "assets/../../x", "assets//x", "assets/.x", "assets\\x", "assets/é", ""]
)
def test_unsafe_paths(document: dict[str, Any], path: str) -> None:
    document["files"][0]["path"] = path
    assert not VALIDATOR.is_valid(document)
    with pytest.raises((UnsafePath, ManifestInvalid)):
        model.read_manifest(dump_strict(document))


def clashing(document: dict[str, Any]) -> None:
    document["files"].insert(0, {"path": "assets/GENERATION_config.json", "size": 0, "sha256": "0" * 64})


def file_and_folder(document: dict[str, Any]) -> None:
    document["files"].insert(1, {"path": "assets/generation_config.json/x", "size": 0, "sha256": "0" * 64})


@pytest.mark.parametrize(("change", "said"), [(clashing, "clash"), (file_and_folder, "both a file and a folder")])
def test_paths_that_clash(document: dict[str, Any], change: Callable[[dict[str, Any]], None], said: str) -> None:
    change(document)
    with pytest.raises(UnsafePath, match=said):
        model.read_manifest(dump_strict(document))


def without(path: str) -> Callable[[dict[str, Any]], None]:
    def apply(document: dict[str, Any]) -> None:
        document["files"] = [entry for entry in document["files"] if entry["path"] != path]

    return apply


INCOHERENT: list[tuple[Callable[[dict[str, Any]], None], str]] = [
    (lambda document: document["files"].reverse(), "sorted"),
    (lambda document: document["files"].append(dict(document["files"][-1])), "once"),
    (without("graph_ir.tssa"), "graph_ir.tssa"),
    (without("tile_kernels/cpu/program.json"), "program.json"),
    (without("weights/shard_tp0_pp0.safetensors"), "shard_tp0_pp0"),
    (edit("mesh.tp", 2), "shard_tp1_pp0"),
    (edit("mesh.tp", 2**62), "shard"),
    (edit("targets", []), "at least one target"),
    (lambda document: document["targets"].append(copy.deepcopy(document["targets"][0])), "each once"),
    (edit("dtype", "fp64"), "fp64"),
    (edit("kv_cache.page_size", "2MiB"), "bytes_per_block"),
    (edit("kv_cache.page_size", "two"), "page_size"),
    (edit("files.0.path", "Makefile"), "Makefile"),
]


@pytest.mark.parametrize(("change", "said"), INCOHERENT)
def test_what_does_not_hang_together(
    document: dict[str, Any], change: Callable[[dict[str, Any]], None], said: str
) -> None:
    change(document)
    with pytest.raises(ManifestInvalid) as refusal:
        model.read_manifest(dump_strict(document))
    assert said in str(refusal.value)


@pytest.mark.parametrize(
    "change", [edit("name", "other"), edit("evidence.kl", 0.5), edit("checksum", "sha256:" + "0" * 64)]
)
def test_an_edit_that_keeps_the_schema(document: dict[str, Any], change: Callable[[dict[str, Any]], None]) -> None:
    change(document)
    VALIDATOR.validate(document)
    with pytest.raises(DigestMismatch, match="manifest.yaml was altered"):
        model.read_manifest(dump_strict(document))


def test_the_checksum_is_the_last_line(package: Path) -> None:
    data = (package / "manifest.yaml").read_bytes()
    with pytest.raises(DigestMismatch):
        model.read_manifest(data + b"# more\n")
    with pytest.raises(ManifestInvalid, match="no checksum"):
        model.read_manifest(data[: data.rindex(b"checksum")])


def test_another_format_is_told_before_its_fields_are_read() -> None:
    with pytest.raises(AbiMismatch, match=r"format 9; this runtime reads format 1\. Install a newer"):
        model.read_manifest(b"format: 9\nwhatever: true\n")


def test_what_cannot_be_read_back_is_not_written() -> None:
    with pytest.raises(ManifestInvalid):
        model.write_manifest(example_manifest())  # lists no files
    evidence = example_manifest().evidence
    assert evidence is not None
    spoiled = msgspec.structs.replace(evidence, kl=float("nan"))
    with pytest.raises(ManifestInvalid, match="evidence.kl"):
        model.check_manifest(example_manifest(evidence=spoiled, files=_files()))


def _files() -> tuple[model.FileEntry, ...]:
    paths = ["graph_ir.tssa", "tile_kernels/cpu/program.json", "weights/shard_tp0_pp0.safetensors"]
    return tuple(model.FileEntry(path=path, size=0, sha256="0" * 64) for path in paths)


HOSTILE_YAML = {
    "anchor": (b"a: &x 1\n", "anchor"),
    "alias": (b"a: *x\n", "alias"),
    "bomb": (b"a: &a [1, 1]\nb: &b [*a, *a]\nc: [*b, *b]\n", "anchor"),
    "tag": (b"a: !!python/object/apply:os.system [ls]\n", "tag"),
    "merge key": (b"<<: {a: 1}\n", "merge"),
    "duplicate key": (b"name: a\nversion: 1\nname: b\n", "'name' twice in line 3"),
    "nested duplicate": (b"mesh: {tp: 1, tp: 2}\n", "'tp' twice"),
    "number as key": (b"1: a\n", "not a string"),
    "list as key": (b"? [a]\n: b\n", "not a string"),
    "two documents": (b"a: 1\n---\nb: 1\n", "second document"),
    "directive": (b"%YAML 1.1\n---\na: 1\n", "directive"),
    "deep": (b"a: " + b"[" * 200_000, "nesting"),
    "too long": (b"a: " + b"x" * 2**20, "the limit is"),
    "not utf-8": (b"a: \xff\n", "UTF-8"),
    "control character": (b"a: \x01\n", "not YAML"),
    "unfinished": (b"a: [1\n", "not YAML"),
    "empty": (b"", "empty"),
    "a list": (b"- a\n", "mapping"),
    "a word": (b"a\n", "mapping"),
}


@pytest.mark.parametrize("kind", HOSTILE_YAML)
def test_hostile_yaml(kind: str) -> None:
    data, reason = HOSTILE_YAML[kind]
    with pytest.raises(ManifestInvalid) as refusal:
        model.read_manifest(data)
    assert reason in str(refusal.value)


JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**17), 10**17)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=20)
    | st.sampled_from(
        ["yes", "1e5", "0x10", "1_000", "08", "1.5", "2020-01-01", "12:30:00", "~", "null", "", "<<", "1.e+1"]
    ),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=8).filter(lambda key: key != "<<"), inner, max_size=3)
    ),
    max_leaves=10,
)


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.text(max_size=8).filter(lambda key: key != "<<"), JSON_VALUES, max_size=4))
def test_what_is_dumped_is_loaded(value: dict[str, Any]) -> None:
    assert load_strict(dump_strict(value)) == value


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_a_spoiled_manifest_is_a_manifest_or_a_refusal(data: st.DataObject) -> None:
    content = bytearray(model.write_manifest(example_manifest(files=_files())))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        model.read_manifest(bytes(content))
    except TesseraError as error:
        assert str(error).endswith(".")
