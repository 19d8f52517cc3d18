"""Prefixes of proxies, slashes at the end of paths, and attempts to get past the keys by them."""

import asyncio
import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from conftest import Serve, listening, png
from fastapi.testclient import TestClient
from hypothesis import example, given, settings
from hypothesis import strategies as st

from service.app import create_app
from service.settings import ServeSettings

Make = Callable[..., Path]
IMAGE = png(np.zeros((32, 32), np.uint8))
KEY = {"X-API-Key": "k"}
HEADER = {"X-Forwarded-Prefix": "/seg"}
NGINX = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")


@contextmanager
def served(model: Path, **server: Any) -> Iterator[httpx.Client]:
    with (
        listening(create_app(ServeSettings(model=model, device="cpu", api_keys=["k"])), **server) as (host, port),
        httpx.Client(base_url=f"http://{host}:{port}") as client,
    ):
        yield client


def check(client: httpx.Client, prefix: str, headers: dict[str, str]) -> None:
    """All works under the prefix, as the proxy passes it on."""
    for path in ("/", "/docs", "/static/docs.js", "/favicon.ico", "/health", "/health/", "/metrics", "/openapi.json"):
        assert client.get(prefix + path, headers=headers).status_code == 200, path
    for path in ("/segment", "/segment/"):
        assert client.post(prefix + path, content=IMAGE, headers=headers).status_code == 401
        assert client.post(prefix + path, content=IMAGE, headers=headers | KEY).status_code == 200
    docs = client.get(prefix + "/docs/", headers=headers)  # where relative addresses would be others
    assert (docs.status_code, docs.headers["location"]) == (307, "../docs")
    assert client.get(prefix + "/openapi.json", headers=headers).json()["servers"] == [{"url": "./"}]
    assert 'unet_requests_total{route="/segment",status="200"} 2.0' in client.get("/metrics").text


@pytest.mark.parametrize("stripped", [True, False])
@pytest.mark.parametrize("headers", [{}, HEADER])
def test_a_prefix_that_the_proxy_takes_off_or_leaves(
    make_checkpoint: Make, stripped: bool, headers: dict[str, str]
) -> None:
    with served(make_checkpoint(), root_path="" if headers else "/seg") as client:
        check(client, "" if stripped else "/seg", headers)
        page = client.get("/seg", headers=headers)
        assert (page.status_code, page.headers["location"]) == (307, "seg/")
        assert page.url.join(page.headers["location"]).path == "/seg/"


@pytest.mark.parametrize(
    "prefix", ["/user/ann@example.org/proxy/host:8000", "/user/ann%40example.org/proxy/host%3A8000"]
)
def test_a_prefix_of_jupyterhub(make_checkpoint: Make, prefix: str) -> None:
    with served(make_checkpoint()) as client:
        headers = {"X-Forwarded-Prefix": prefix}
        check(client, prefix, headers)
        page = client.get(prefix, headers=headers)
        assert page.url.join(page.headers["location"]).path == "/user/ann@example.org/proxy/host:8000/"


def test_a_prefix_may_be_called_as_a_route_is(serve: Serve) -> None:
    with serve(model="none.pth") as client:
        headers = {"X-Forwarded-Prefix": "/segment"}
        for path in ("/segment", "/segment/segment"):  # taken off by the proxy, or not
            assert client.post(path, content=IMAGE, headers=headers).status_code == 503
        assert client.get("/segment/health", headers=headers).json()["status"] == "waiting"


@pytest.mark.parametrize("value", ["seg", "//evil.example", "/a b", "/a//b", "/a?b", "https://evil.example", "/é"])
def test_a_header_that_is_no_prefix_is_400(serve: Serve, value: str) -> None:
    with serve() as client:
        answer = client.get("/health/live", headers={b"X-Forwarded-Prefix": value.encode()})
        assert (answer.status_code, answer.headers["content-type"]) == (400, "application/problem+json")
        assert answer.json()["detail"].startswith("X-Forwarded-Prefix: expected a path like /unet, found ")
        assert client.get("/health/live", headers={"X-Forwarded-Prefix": "/seg/"}).status_code == 200


PIECES = ["/segment", "/preview", "/seg", "ment", "/health", "/live", "/metrics", "/docs", "/openapi.json", "/static"]
PIECES += ["/", "//", "/..", "%2F", "\n", "\\", ";", "http://x"]
paths = st.lists(st.sampled_from(PIECES), max_size=4).map("".join)


@pytest.fixture(scope="module")
def locked() -> Iterator[Any]:
    """A service of which all but the page and /health/live needs a key."""
    app = create_app(ServeSettings(model="none.pth", device="cpu", api_keys=["k"], keys_everywhere=True))
    with TestClient(app):
        yield app


@settings(max_examples=200, deadline=None, derandomize=True)
@given(root=paths, prefix=paths, path=paths, method=st.sampled_from(["GET", "HEAD", "POST", "OPTIONS"]))
@example(root="", prefix="/x", path="/x/segment", method="POST")
@example(root="", prefix="/health", path="/health/segment", method="POST")
@example(root="", prefix="/segm", path="ent", method="POST")
@example(root="", prefix="", path="/segment\n", method="POST")
@example(root="/static", prefix="", path="/static/static/segment", method="POST")
def test_nothing_is_reached_without_a_key(locked: Any, root: str, prefix: str, path: str, method: str) -> None:
    sent: list[Any] = []
    received: list[Any] = []

    async def receive() -> Any:
        received.append({"type": "http.request", "body": b"", "more_body": False})
        if len(received) > 1:
            await asyncio.Event().wait()
        return received[0]

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"host", b"x"), (b"x-forwarded-prefix", prefix.encode())]
    # as uvicorn makes it: the prefix before what was asked for
    scope: Any = {"type": "http", "method": method, "path": root + path, "root_path": root, "headers": headers}
    scope["query_string"] = b""
    asyncio.run(locked(scope, receive, send))
    reached = scope.get("endpoint")
    assert getattr(reached, "__name__", None) in (None, "page", "file", "icon", "live")
    assert sent[0]["status"] in (200, 204, 304, 307, 400, 401, 404, 405)


@pytest.mark.skipif(NGINX is None, reason="NO NGINX HERE: apt-get install nginx-light")
def test_behind_nginx(make_checkpoint: Make, tmp_path: Path) -> None:
    """Three ways to offer the service under a prefix."""
    with served(make_checkpoint()) as service, gateway(tmp_path, str(service.base_url).rstrip("/")) as url:
        for prefix in ("/seg", "/told", "/kept"):
            with httpx.Client(base_url=url) as client:
                page = client.get(prefix)
                assert page.status_code in (301, 307)
                assert page.url.join(page.headers["location"]).path == f"{prefix}/"
                for path in ("/", "/docs", "/static/docs.js", "/health/"):
                    assert client.get(prefix + path).status_code == 200, prefix + path
                docs = client.get(f"{prefix}/docs/")
                assert docs.url.join(docs.headers["location"]).path == f"{prefix}/docs"
                assert client.post(f"{prefix}/segment", content=IMAGE).status_code == 401
                assert client.post(f"{prefix}/segment/", content=IMAGE, headers=KEY).status_code == 200


@contextmanager
def gateway(folder: Path, service: str) -> Iterator[str]:
    """nginx in front of the service; yields its URL. The prefix is taken off, taken off and told, or told only."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    (folder / "nginx.conf").write_text(f"""
pid {folder}/pid;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}; proxy_temp_path {folder}; fastcgi_temp_path {folder}; uwsgi_temp_path {folder};
    scgi_temp_path {folder};
    server {{
        listen 127.0.0.1:{port};
        location /seg/ {{ proxy_pass {service}/; }}
        location /told/ {{ proxy_pass {service}/; proxy_set_header X-Forwarded-Prefix /told; }}
        location /kept {{ proxy_pass {service}; proxy_set_header X-Forwarded-Prefix /kept; }}
    }}
}}""")
    command = [str(NGINX), "-e", f"{folder}/log", "-c", f"{folder}/nginx.conf"]
    user = ["-g", "user root;"] if os.geteuid() == 0 else []  # pytest's folders are closed to others
    subprocess.run([*command, *user], check=True)  # a daemon: it listens when this command ends
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        subprocess.run([*command, "-s", "stop"], check=True)
