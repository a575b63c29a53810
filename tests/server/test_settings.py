"""tis.yaml, environment and flags: every key is known, later wins, nothing is silently ignored."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from running_server import HERE, RunningServer, clean_environment

from tessera_runtime.configuration import Configuration, ServerEnvironment, driver_environment
from tessera_runtime.errors import InvalidRequest
from tessera_runtime.server.errors import ConfigurationInvalid, NotYetActive
from tessera_runtime.server.settings import (
    ModelSettings,
    Settings,
    check_security,
    gather_settings,
    override,
    read_settings,
)

GUIDE = """
server:
  port: 8080
  backend: ptx
  numerics: deterministic
models:
  - package: gpt-oss-7b.tspkg
    mesh: { tp: 2, pp: 1, dp: 1 }
    instances: 2
scheduler:
  target_p99_ms: 150
  max_batch_tokens: 2048
  speculative:
    enabled: true
    draft_model: gpt-oss-1b
kv_cache:
  pages: 4096
  page_size: 2MiB
  spill: host_pinned
observability:
  prometheus: { path: /metrics }
  otlp: { endpoint: http://otel-collector:4317 }
security:
  auth: oidc
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "tis.yaml"
    path.write_text(text)
    return path


def test_the_file_of_the_guide(tmp_path: Path) -> None:
    settings, auth = read_settings(write(tmp_path, GUIDE))
    assert auth == "oidc"
    assert replace(settings, inactive=()) == Settings(
        models=(ModelSettings(tmp_path / "gpt-oss-7b.tspkg", instances=2),),
        port=8080,
        max_batch_tokens=2048,
        kv_memory=4096 * (2 << 20),
    )
    named = [entry.partition(":")[0] for entry in settings.inactive]
    assert named == [
        *("server.backend", "models[0].mesh", "scheduler.target_p99_ms"),
        *("scheduler.speculative", "kv_cache.spill", "observability.otlp"),
    ]


def test_an_empty_mapping_gives_the_defaults(tmp_path: Path) -> None:
    settings, auth = read_settings(write(tmp_path, "server: {}\n"))
    assert settings == Settings() and auth == "none"


WRONG = [
    ("sever: {}", "unknown key 'sever'. Did you mean 'server'?"),
    ("server: {prot: 1}", "unknown key 'server.prot'. Did you mean 'port'?"),
    ("scheduler: {speculative: {enable: true}}", "'scheduler.speculative.enable'. Did you mean 'enabled'?"),
    ("models: [{package: a, instance: 2}]", "'models[0].instance'. Did you mean 'instances'?"),
    ("models: [{package: a, mesh: {tq: 2}}]", "'models[0].mesh.tq'. Did you mean 'tp'?"),
    ("server: {port: 70000}", "server.port"),
    ("server: {port: web}", "server.port"),
    ("server: {backend: gpu}", "server.backend"),
    ("server: {numerics: sloppy}", "server.numerics"),
    ("models: [{package: a, instances: 0}]", "models[0].instances"),
    ("kv_cache: {pages: 5}", "pages and page_size"),
    ("kv_cache: {pages: 5, page_size: 2XB}", "kv_cache.page_size"),
    ("observability: {prometheus: {path: metrics}}", "observability.prometheus.path"),
    ("security: {auth: magic}", "security.auth"),
    ("- a", "should be a mapping"),
    ("server: &a {}", "anchor"),
    ("server: [", "not YAML"),
    ("", "empty"),
]


@pytest.mark.parametrize(("text", "message"), WRONG, ids=[text for text, _ in WRONG])
def test_a_mistake_is_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigurationInvalid) as caught:
        read_settings(write(tmp_path, text))
    assert message in str(caught.value) and "manifest" not in str(caught.value)


def test_packages_from_elsewhere_are_refused(tmp_path: Path) -> None:
    with pytest.raises(NotYetActive, match="s3://"):
        read_settings(write(tmp_path, "models: [{package: s3://models/a.tspkg}]"))


def test_protection_that_would_be_missing_is_refused() -> None:
    with pytest.raises(NotYetActive, match="oidc"):
        check_security("oidc", ())
    with pytest.raises(ConfigurationInvalid, match="no key"):
        check_security("api_key", ())
    assert check_security("oidc", ("key",))[0].startswith("security.auth: oidc")
    assert check_security("api_key", ("key",)) == check_security("none", ()) == ()


def test_the_file_may_name_a_file_of_keys(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("# mine\nabc\n")
    settings, auth = read_settings(write(tmp_path, "security: {auth: api_key, api_key_file: keys}"))
    assert (settings.api_keys, auth) == (("abc",), "api_key") and "abc" not in repr(settings)


def test_what_is_given_goes_before_the_environment_and_that_before_the_file(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("of the file\n")
    path = write(tmp_path, "{server: {host: a, port: 1, threads: 3}, security: {auth: api_key, api_key_file: keys}}")
    process = Configuration(threads=4)
    environment = ServerEnvironment(config=path, port=2, max_queue=5)
    found = gather_settings(None, environment, process, max_queue=6, port=None)
    assert (found.host, found.port, found.threads, found.max_queue) == ("a", 2, 4, 6)
    assert found.api_keys == ("of the file",)
    assert gather_settings(None, replace(environment, api_key="b"), process).api_keys == ("b",)
    # A file that nobody needs is not read.
    lost = replace(environment, api_key_file=tmp_path / "lost")
    assert gather_settings(None, lost, process, api_keys=("c",)).api_keys == ("c",)
    with pytest.raises(ConfigurationInvalid, match="there is no key"):
        gather_settings(path, environment, process, api_keys=())


def test_the_environment() -> None:
    assert ServerEnvironment.from_environment({"XDG_CACHE_HOME": "/c"}) == ServerEnvironment(cache=Path("/c/tessera"))
    values = {
        "TESSERA_PORT": "99",
        "TESSERA_KV_MEMORY": "2GiB",
        "TESSERA_API_KEY": "abc",
        "TESSERA_CACHE": "/d",
        "TESSERA_MAX_BATCH_TOKEN": "5",
        "TESSERA_SERVICE_HOST": "10.0.0.1",
    }
    found = ServerEnvironment.from_environment(values)
    assert (found.port, found.kv_memory, found.api_key, found.cache) == (99, 2 << 30, "abc", Path("/d"))
    assert len(found.misspelt) == 1 and "TESSERA_MAX_BATCH_TOKENS?" in found.misspelt[0]
    assert "abc" not in repr(found)
    assert ServerEnvironment.from_environment({"TESSERA_PORT": "tcp://10.0.0.1:8080"}).port is None
    for name, value in (("TESSERA_PORT", "70000"), ("TESSERA_KV_MEMORY", "lots"), ("TESSERA_MAX_QUEUE", "0")):
        with pytest.raises(InvalidRequest, match=name):
            ServerEnvironment.from_environment({name: value})


def test_drivers_are_told_what_is_meant_for_them_and_nothing_else() -> None:
    theirs = {"CUDA_VISIBLE_DEVICES": "1", "ROCR_VISIBLE_DEVICES": "2", "LD_LIBRARY_PATH": "/l", "HOME": "/h"}
    others = {"TESSERA_API_KEY": "abc", "AWS_SECRET": "s", "MY_CUDA_TOKEN": "t", "HOMES": "/x", "PATH": "/bin"}
    assert driver_environment({**theirs, **others}) == theirs


def test_none_overrides_nothing() -> None:
    assert override(Settings(port=5), port=None, host="h") == Settings(port=5, host="h")


def run(*arguments: object, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """A `tessera run` that must end by itself."""
    return subprocess.run(
        [sys.executable, str(HERE / "run_toy.py"), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=20,
        env={**clean_environment(), **(environment or {})},
    )


def refusal(*arguments: object, environment: dict[str, str] | None = None) -> str:
    """What a `tessera run` says that must fail with 2, in at most two lines."""
    done = run(*arguments, environment=environment)
    assert done.returncode == 2, done.stderr
    lines = done.stderr.strip().splitlines()
    assert lines[0].startswith("error: ") and len(lines) <= 2 and "Traceback" not in done.stderr, done.stderr
    return done.stderr


def test_starts_that_fail_say_why_in_a_sentence(package: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"Port {port} on 127.0.0.1 is in use" in refusal(package, "--port", port)
    assert "does not exist" in refusal(tmp_path / "nothing.tspkg")
    assert "no package to serve" in refusal()
    assert "Did you mean 'server'" in refusal("--config", write(tmp_path, "sever: {}"))
    assert "cannot be read" in refusal("--config", tmp_path / "none.yaml")
    assert "No target of this package runs here" in refusal(package, "--target", "none", "--port", 0)
    assert "is not known" in refusal(package, "--host", "no.such.host.invalid")
    assert "both be served as 'tiny'" in refusal(package, package, "--port", 0)
    assert "TESSERA_PORT" in refusal(package, environment={"TESSERA_PORT": "x"})
    assert "holds no key" in refusal(package, "--api-key-file", write(tmp_path, ""))


def test_a_corrupt_package_is_refused(package: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.tspkg"
    subprocess.run(["cp", "-r", str(package), str(copy)], check=True)
    weights = copy / "weights" / "shard_tp0_pp0.safetensors"
    weights.chmod(0o644)
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert "weights/shard_tp0_pp0.safetensors" in refusal(copy, "--port", 0)


def test_flags_go_before_the_environment_and_that_before_the_file(package: Path, tmp_path: Path) -> None:
    text = f"""
server: {{ port: 1, host: 192.0.2.1, backend: rocm }}
models: [{{ package: {package}, name: named }}]
scheduler: {{ max_batch_tokens: 40, max_queue: 3 }}
observability: {{ prometheus: {{ path: /own/metrics }} }}
"""
    environment = {"TESSERA_HOST": "127.0.0.1", "TESSERA_CONFIG": str(write(tmp_path, text)), "TESSERA_MAX_QUEUE": "9"}
    running = RunningServer("--max-batch-tokens", "32", environment=environment)
    try:
        model = running.ready["models"][0]
        assert (model["name"], model["max_batch_tokens"]) == ("named", 32)
        assert running.http.get("/own/metrics").status_code == 200
        assert running.http.get("/metrics").status_code == 404
        assert "Not yet active: server.backend: rocm" in running.errors()
    finally:
        running.close()


def test_people_read_a_line_per_phase_and_a_ready_line(package: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, str(HERE / "run_toy.py"), str(package), "--port", "0"], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    lines = []
    while not lines or not lines[-1].startswith("ready"):
        lines.append(process.stdout.readline())
        assert lines[-1]
    process.terminate()
    assert process.wait(10) == 0
    process.stdout.close()
    assert all(line.endswith(" s\n") for line in lines[:-1]) and len(lines) > 3
    assert "http://127.0.0.1:" in lines[-1] and "512 tokens of context" in lines[-1]


def test_info(capsys: pytest.CaptureFixture[str]) -> None:
    from tessera.cli.main import main

    assert main(["info", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["cores"] >= 1 and facts["backends"] == ["cpu", "reference"] and facts["classes"]
    assert main(["info"]) == 0
    assert "cores" in capsys.readouterr().out
