"""Access: API keys, host names, origins, security headers; no leaks of paths, and no code run from model files."""

import asyncio
import io
import os
import pickle
import platform
import re
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import fastapi
import numpy as np
import pytest
import starlette
import torch
from conftest import Serve, png
from fastapi.testclient import TestClient

import unet
from service.settings import ServeSettings
from unet.settings import parse

Make = Callable[..., Path]
IMAGE = png(np.zeros((40, 30), np.uint8))
KEY, OTHER = "key-of-the-lab", "key-of-the-clinic"


# ---- keys


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": f"Bearer {KEY}"},
        {"Authorization": f"bearer  {OTHER}"},
        {"X-API-Key": OTHER},
        {"X-API-Key": KEY, "Authorization": "Basic bmFtZTpwYXNz"},  # added by a proxy
        {"X-API-Key": KEY, "Authorization": "Bearer of-a-proxy"},
    ],
)
def test_a_request_with_a_key_is_answered(make_checkpoint: Make, serve: Serve, headers: dict[str, str]) -> None:
    with serve(model=make_checkpoint(), api_keys=[KEY, OTHER]) as client:
        assert client.post("/segment", content=IMAGE, headers=headers).status_code == 200


@pytest.mark.parametrize(
    ("headers", "found"),
    [
        ({}, "found none"),
        ({"Authorization": "Bearer"}, "found none"),
        ({"Authorization": f"Basic {KEY}"}, "found none"),
        ({"Authorization": f"Bearer {KEY}x"}, "found another"),
        ({"Authorization": f"Bearer {KEY[:-1]}"}, "found another"),
        ({"Authorization": f"Bearer {KEY},{OTHER}"}, "found another"),
        ({"X-API-Key": KEY.upper()}, "found another"),
        ({"X-API-Key": KEY.upper(), "Authorization": "Bearer"}, "found another"),
        ({b"X-API-Key": b"\xff\x00\xfe"}, "found another"),
    ],
)
def test_401_says_how_to_send_a_key(serve: Serve, headers: Any, found: str) -> None:
    with serve(api_keys=[KEY, OTHER]) as client:
        answer = client.post("/segment", content=IMAGE, headers=headers)
    assert answer.status_code == 401
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.headers["x-request-id"]
    assert found in answer.json()["detail"]
    assert KEY not in answer.text


def test_the_key_is_checked_before_the_body_is_read(serve: Serve) -> None:
    sent: list[Any] = []

    async def receive() -> Any:
        raise AssertionError("the body was read")

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"content-length", b"5"), (b"host", b"x")]
    scope = {"type": "http", "method": "POST", "path": "/segment", "query_string": b"", "headers": headers}
    with serve(api_keys=[KEY]) as client:
        asyncio.run(client.app(scope, receive, send))  # type: ignore[arg-type]
    assert sent[0]["status"] == 401


OPEN = ["/health", "/health/live", "/metrics", "/docs", "/openapi.json"]


def test_health_metrics_and_docs_are_open_unless_keys_are_needed_everywhere(
    make_checkpoint: Make, serve: Serve
) -> None:
    path = make_checkpoint()
    with serve(model=path, api_keys=[KEY]) as client:
        assert [client.get(url).status_code for url in OPEN] == 5 * [200]
        assert client.get("/nothing").status_code == 401
        assert client.get("/segment/").status_code == 401
    with serve(model=path, api_keys=[KEY], keys_everywhere=True) as client:
        assert [client.get(url).status_code for url in OPEN] == [401, 200, 401, 200, 401]
        assert [client.get(url, headers={"X-API-Key": KEY}).status_code for url in OPEN] == 5 * [200]


def test_openapi_declares_keys_where_they_are_needed(serve: Serve) -> None:
    def asks(client: TestClient) -> list[str]:
        document = client.get("/openapi.json", headers={"X-API-Key": KEY}).json()
        schemes = {"APIKeyHeader": {"type": "apiKey", "in": "header", "name": "X-API-Key"}}
        schemes["HTTPBearer"] = {"type": "http", "scheme": "bearer"}
        assert document["components"].get("securitySchemes") in (None, schemes)
        operations = {path: next(iter(methods.values())) for path, methods in document["paths"].items()}
        needed = [path for path, operation in operations.items() if "security" in operation]
        assert all("401" in operations[path]["responses"] for path in needed)
        return needed

    with serve() as client:
        assert asks(client) == []
    with serve(api_keys=[KEY]) as client:
        assert asks(client) == ["/segment", "/preview"]
    with serve(api_keys=[KEY], keys_everywhere=True) as client:
        assert sorted(asks(client)) == ["/health", "/metrics", "/preview", "/segment", "/training"]


@pytest.mark.parametrize("value", [f"{KEY},{OTHER}", f"{KEY}, {OTHER}", f" {KEY},{OTHER}"])
def test_keys_from_the_environment(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("SERVICE_API_KEYS", value)
    settings = parse(ServeSettings, [])
    assert [key.get_secret_value() for key in settings.api_keys] == [KEY, OTHER]
    assert KEY not in f"{settings!r} {settings} {settings.model_dump()} {settings.model_dump_json()}"


@pytest.mark.parametrize("value", [" ", ",", f"{KEY},", f'["{KEY}", ""]', f'["{KEY}"', f"{KEY} {OTHER}", "schlüssel"])
def test_invalid_keys_end_the_program_and_are_not_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], value: str
) -> None:
    """Above all, they do not count as `no keys: anybody may ask`."""
    monkeypatch.setenv("SERVICE_API_KEYS", value)
    with pytest.raises(SystemExit):
        parse(ServeSettings, [])
    printed = capsys.readouterr().err
    with pytest.raises(SystemExit):
        parse(ServeSettings, ["--api-keys", ""])  # "$KEYS" that are not set
    assert printed.startswith("unet-serve: error: --api-keys (or SERVICE_API_KEYS): ")
    assert printed.count("\n") == 1
    assert KEY not in printed
    assert "schl" not in printed


# ---- hosts and origins


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("example.org", 503),  # no model
        ("EXAMPLE.org:8000", 503),
        ("a.example.net", 503),
        ("[::1]:8000", 503),
        ("example.net", 400),
        ("notexample.org", 400),
        ("example.org.evil.com", 400),
        ("evil.com:80", 400),
        ("[::2]", 400),
        ("", 400),
    ],
)
def test_allowed_hosts(serve: Serve, host: str, status: int) -> None:
    with serve(allowed_hosts=["example.org", "*.example.net", "[::1]"], model="none.pth") as client:
        answer = client.post("/segment", content=IMAGE, headers={"Host": host})
        assert answer.status_code == status
        assert answer.headers["content-type"] == "application/problem+json"
        assert client.get("/health/live", headers={"Host": host}).status_code == 200  # asked by address


def test_origins(make_checkpoint: Make, serve: Serve) -> None:
    ours, foreign = {"Origin": "https://lab.example.org"}, {"Origin": "https://evil.com"}
    asks = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "x-api-key"}
    path = make_checkpoint()
    with serve(model=path) as client:
        assert "access-control-allow-origin" not in client.post("/segment", content=IMAGE, headers=ours).headers
        assert "access-control-allow-origin" not in client.options("/segment", headers=ours | asks).headers
    with serve(model=path, cors_origins=["https://Lab.example.org"], api_keys=[KEY]) as client:
        preflight = client.options("/segment", headers=ours | asks)  # browsers send no key with it
        assert preflight.status_code == 200
        assert preflight.headers["access-control-allow-origin"] == ours["Origin"]
        assert client.options("/segment", headers=foreign | asks).status_code == 400
        answer = client.post("/segment", content=IMAGE, headers=ours | {"X-API-Key": KEY})
        assert answer.headers["access-control-allow-origin"] == ours["Origin"]
        exposed = set(answer.headers["access-control-expose-headers"].split(", "))
        assert exposed >= {"X-Model-Id", "X-Request-Id", "Server-Timing", "X-Input-Warning", "Retry-After", "X-Pages"}
        refused = client.post("/segment", content=IMAGE, headers=ours)
        assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (401, ours["Origin"])
        foreign_answer = client.post("/segment", content=IMAGE, headers=foreign | {"X-API-Key": KEY})
        assert "access-control-allow-origin" not in foreign_answer.headers


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--allowed-hosts", "https://example.org"),
        ("--allowed-hosts", "example.org:80"),
        ("--allowed-hosts", "a.*"),
        ("--allowed-hosts", " "),
        ("--cors-origins", "example.org"),
        ("--cors-origins", "https://example.org/"),
        ("--cors-origins", "https://*.example.org"),
        ("--cors-origins", "https://me@example.org"),
    ],
)
def test_hosts_and_origins_that_never_match_end_the_program(
    capsys: pytest.CaptureFixture[str], flag: str, value: str
) -> None:
    with pytest.raises(SystemExit):
        parse(ServeSettings, [flag, value])
    assert f"error: {flag} (or SERVICE_" in capsys.readouterr().err


def test_origins_are_normalised_as_browsers_send_them() -> None:
    origins = parse(ServeSettings, ["--cors-origins", "HTTPS://Lab.org:443, http://lab.org:80, http://lab.org:443, *"])
    assert origins.cors_origins == ["https://lab.org", "http://lab.org", "http://lab.org:443", "*"]


# ---- answers


def test_no_answer_is_taken_for_another_type(client: TestClient) -> None:
    for answer in (client.get("/health"), client.get("/nothing"), client.post("/segment", content=IMAGE)):
        assert answer.headers["x-content-type-options"] == "nosniff"


def test_no_error_reveals_paths_or_versions(
    tmp_path: Path, make_checkpoint: Make, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_checkpoint()
    path.write_bytes(b"broken")
    with serve(model=path, max_bytes=1000, watch_s=1000) as client:
        answers = [client.post("/segment", content=IMAGE), client.get("/health")]
        make_checkpoint()
        client.app.state.slot.refresh()  # type: ignore[attr-defined]
        answers += [
            client.get("/nothing"),
            client.get("/segment"),
            client.get("/segment/"),
            client.get("/..%2F..%2Fetc/passwd"),
            client.post("/segment", content=b"x"),
            client.post("/segment", content=b"x" * 1001),
            client.post("/segment", json={}),
            client.post("/segment?threshold=2", content=IMAGE),
            client.post("/segment", files={"x": b""}),
            client.post("/segment", content=b"--", headers={"Content-Type": "multipart/form-data"}),
        ]
        monkeypatch.setattr("service.routes.segment.decode", lambda *_, **__: path.with_name("none").read_bytes())
        answers.append(client.post("/segment", content=IMAGE))
    assert sorted({answer.status_code for answer in answers}) == [400, 404, 405, 413, 415, 422, 500, 503]
    versions = (fastapi.__version__, starlette.__version__, torch.__version__, platform.python_version())
    for answer in answers:
        told = f"{answer.headers} {answer.text}"
        assert str(tmp_path) not in told
        assert str(Path(unet.__file__).parents[1]) not in told
        assert not any(re.search(rf"(?<![\d.]){re.escape(version)}(?![\d.])", told) for version in versions)
        assert "server" not in answer.headers
        assert "Traceback" not in told


# ---- files that would run code


class Evil:
    def __init__(self, touched: Path) -> None:
        self.touched = touched

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.touched),)


def as_pickle(evil: Evil) -> bytes:
    return pickle.dumps(evil)


def as_checkpoint(evil: Evil) -> bytes:
    """A file of torch: a zip archive with the pickle in it."""
    file = io.BytesIO()
    torch.save({"format": 1, "state_dict": {"inc.double_conv.0.weight": evil}}, file)
    assert "archive/data.pkl" in zipfile.ZipFile(file).namelist()
    return file.getvalue()


@pytest.mark.parametrize("make", [as_pickle, as_checkpoint])
def test_a_model_file_that_would_run_code_is_refused_and_runs_none(
    tmp_path: Path, make_checkpoint: Make, serve: Serve, make: Callable[[Evil], bytes]
) -> None:
    touched = tmp_path / "touched"
    content = make(Evil(touched))
    with suppress(RuntimeError):  # the plain pickle holds no checkpoint, but has run by then
        torch.load(io.BytesIO(content), weights_only=False)
    touched.rmdir()  # it works

    model = tmp_path / "best_model.pth"
    model.write_bytes(content)
    with serve(model=model, watch_s=1000) as client:
        answer = client.get("/health")
        assert (answer.status_code, answer.json()["status"]) == (503, "failed")
        assert answer.json()["refused"].startswith("best_model.pth: ")
        assert client.post("/segment", content=IMAGE).status_code == 503

        make_checkpoint()
        client.app.state.slot.refresh()  # type: ignore[attr-defined]
        good = client.get("/health").json()["model"]["id"]
        model.write_bytes(content)
        client.app.state.slot.refresh()  # type: ignore[attr-defined]
        health = client.get("/health").json()
        assert (health["status"], health["model"]["id"]) == ("ok", good)
        assert health["refused"].startswith("best_model.pth: ")
        assert client.post("/segment", content=IMAGE).headers["x-model-id"] == good
    assert not touched.exists()
