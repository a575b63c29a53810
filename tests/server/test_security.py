"""Keys, hosts, and what may be seen from outside."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from running_server import RunningServer, Start, children, command_line

KEY, OTHER = "sk-planted-4711", "sk-second-0815"


@pytest.fixture(scope="module")
def guarded(package: Path, tmp_path_factory: pytest.TempPathFactory) -> object:
    keys = tmp_path_factory.mktemp("keys") / "keys.txt"
    keys.write_text(f"# two of them\n{KEY}\n\n{OTHER}\n")
    running = RunningServer(package, "--api-key-file", keys, environment={"TESSERA_LOG": "debug"})
    yield running
    running.close()


HOSTILE_HOSTS = ["127.0.0.1", "evil.example", "x/healthz", "healthz", "/healthz?", "a\\b", "localhost:99999", ""]
PATHS = ["/v1/models", "/v1/models/tiny", "/v1/nowhere", "/v1", "/%76%31/models"]


@pytest.mark.parametrize("host", HOSTILE_HOSTS)
@pytest.mark.parametrize("path", PATHS)
def test_no_header_opens_what_the_key_closes(guarded: RunningServer, host: str, path: str) -> None:
    headers = {"Host": host, "X-Forwarded-Prefix": "/health", "X-Original-URL": "/healthz", "X-Rewrite-Url": "/health"}
    answer = guarded.http.get(path, headers=headers)
    assert answer.status_code == 401, path
    assert answer.json()["error"]["code"] == "invalid_api_key" and answer.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize(
    "path", ["//v1/models", "/v1//models", "/V1/models", "/health/../v1/models", "/v1/models/../models"]
)
def test_no_spelling_of_the_path_leads_around_the_key(guarded: RunningServer, path: str) -> None:
    assert guarded.http.get(path).status_code in (401, 404)


@pytest.mark.parametrize(
    "header", ["", "Bearer", "Bearer x y", f"Bearer {KEY}x", f"Bearer {KEY[:-1]}", f"Basic {KEY}", KEY, "Bearer é"]
)
def test_what_is_no_key(guarded: RunningServer, header: str) -> None:
    answer = guarded.http.get("/v1/models", headers={"Authorization": header.encode()})
    assert answer.status_code == 401


def test_keys_open(guarded: RunningServer) -> None:
    for key in (KEY, OTHER):
        assert guarded.client(key).models.list().data[0].id == "tiny"
    for path in ("/health", "/v1/healthz", "/metrics", "/version", "/openapi.json"):
        assert guarded.http.get(path).status_code == 200, path


def test_owners_of_keys_do_not_share_a_cache(guarded: RunningServer) -> None:
    def cached(key: str) -> int:
        body = {"prompt": list(range(30, 130)), "max_tokens": 1}
        answer = guarded.http.post("/v1/completions", json=body, headers={"Authorization": f"Bearer {key}"})
        return int(answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"])

    assert [cached(KEY), cached(KEY), cached(OTHER)] == [0, 96, 0]


def test_keys_are_nowhere_to_be_seen(guarded: RunningServer) -> None:
    guarded.http.get("/v1/models", headers={"Authorization": f"Bearer {KEY}"})
    seen = guarded.errors() + guarded.http.get("/metrics").text
    for pid in (guarded.process.pid, *children(guarded.process.pid)):
        seen += command_line(pid).decode()
        seen += Path(f"/proc/{pid}/environ").read_text()
    assert KEY not in seen and OTHER not in seen


def test_a_key_from_the_environment_does_not_reach_the_engine(start: Start) -> None:
    running = start(environment={"TESSERA_API_KEY": KEY, "CUDA_VISIBLE_DEVICES": "2"})
    assert running.http.get("/v1/models").status_code == 401
    seen = [Path(f"/proc/{pid}/environ").read_text() for pid in children(running.process.pid)]
    assert seen and not any(KEY in each for each in seen)
    # Of several devices, the engine takes the one that this process was given.
    assert any("CUDA_VISIBLE_DEVICES=2\0" in each for each in seen)


def test_only_the_port_listens(server: RunningServer) -> None:
    inodes = set()
    for pid in (server.process.pid, *children(server.process.pid)):
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            try:
                inodes.add(os.readlink(entry))
            except OSError:
                continue
    listening = []
    for name in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in inodes:
                listening.append(fields[1])
    assert listening == [f"0100007F:{server.port:04X}"]


def test_the_socket_between_the_processes_has_no_name_any_more(server: RunningServer) -> None:
    pid = server.engines()[0]
    path = command_line(pid).split(b"\0--socket\0")[1].split(b"\0")[0].decode()
    assert path.endswith("/engine") and not Path(path).parent.exists()
