"""The page, /docs and their files; methods of every route; compression."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Serve
from fastapi.testclient import TestClient

STATIC = Path(__file__).parent.parent / "service" / "static"
GET = ["GET", "HEAD"]
METHODS = {
    "/": GET,
    "/docs": GET,
    "/favicon.ico": GET,
    "/health": GET,
    "/health/live": GET,
    "/metrics": GET,
    "/openapi.json": GET,
    "/preview": ["POST"],
    "/segment": ["POST"],
    "/static/docs.js": GET,
    "/training": GET,
}


@pytest.fixture
def service(serve: Serve) -> Iterator[TestClient]:
    """The app without a model."""
    with serve(model="none.pth") as client:
        yield client


@pytest.mark.parametrize("keys", [{}, {"api_keys": ["k"]}, {"api_keys": ["k"], "keys_everywhere": True}])
def test_the_page_needs_no_key_as_it_asks_for_it(serve: Serve, keys: dict[str, object]) -> None:
    with serve(**keys) as client:
        page = client.get("/")
        assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
        assert page.content == (STATIC / "index.html").read_bytes()
        assert client.get("/static/docs.js").status_code == 200
        icon = client.get("/favicon.ico")
        assert (icon.headers["content-type"], icon.content) == ("image/svg+xml", (STATIC / "icon.svg").read_bytes())


@pytest.mark.parametrize("path", ["/", "/docs", "/static/docs.js", "/favicon.ico"])
def test_a_file_is_sent_again_only_when_it_has_changed(service: TestClient, path: str) -> None:
    first = service.get(path)
    assert first.headers["cache-control"] == "no-cache"  # browsers ask each time
    again = service.get(path, headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", first.headers["etag"])
    assert again.headers["cache-control"] == "no-cache"
    assert service.get(path, headers={"If-None-Match": '"another"'}).content == first.content


@pytest.mark.parametrize("name", ["none.js", "", ".", "%2e%2e", "..%2fapp.py", "%2e%2e%2fapp.py", "%00", "x" * 999])
def test_only_files_of_the_page_are_sent(service: TestClient, name: str) -> None:
    assert service.get(f"/static/{name}").status_code == 404


def test_a_body_with_a_request_for_a_file_is_not_read(serve: Serve) -> None:
    """Otherwise its refusal, 413, would be a bug in the middle of the answer."""
    with serve(model="none.pth", max_bytes=1000) as client:
        answer = client.request("GET", "/static/docs.js", content=iter([b"x" * 600] * 2))
        assert (answer.status_code, answer.content) == (200, (STATIC / "docs.js").read_bytes())
        assert "unet_bugs_total 0.0" in client.get("/metrics").text


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_pages_load_their_own_files_only_by_relative_addresses(service: TestClient, path: str) -> None:
    page = service.get(path)
    assert "style=" not in page.text
    for tag in re.findall(r"<script[^>]*>|<style[^>]*>", page.text):
        assert " src=" in tag  # nothing inline
    addresses = re.findall(r'\s(?:src|href)="([^"#]+)"', page.text)
    assert addresses
    for address in addresses:
        assert re.match(r"[a-z]", address)
        assert ":" not in address
        assert service.get(f"/{address}").status_code == 200, address


def test_the_policy_allows_nothing_inline_or_foreign(service: TestClient) -> None:
    for path in ("/", "/docs"):
        headers = service.get(path).headers
        assert headers["referrer-policy"] == "no-referrer"
        policy = dict(part.strip().partition(" ")[::2] for part in headers["content-security-policy"].split(";"))
        assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
        assert policy["script-src"] == policy["style-src"] == policy["worker-src"] == "'self'"
        assert "unsafe" not in str(policy)
        assert "http" not in str(policy)


def test_methods_of_every_route(service: TestClient) -> None:
    for path, methods in METHODS.items():
        allow = ", ".join([*methods, "OPTIONS"])
        options = service.options(path)
        assert (options.status_code, options.headers["allow"], options.content) == (204, allow, b""), path
        refused = service.delete(path)
        assert (refused.status_code, refused.headers["allow"]) == (405, allow)
        assert refused.json()["detail"] == f"expected {' or '.join(methods)}, found DELETE"
        if "HEAD" in methods:
            got, head = service.get(path), service.head(path)
            assert (head.status_code, head.content) == (got.status_code, b"")
            assert head.headers["content-type"] == got.headers["content-type"]
    assert service.options("/nothing").status_code == 404
    assert service.get("/openapi.json").json()["paths"].keys() < METHODS.keys()


def test_text_is_compressed_where_the_client_takes_it(service: TestClient) -> None:
    for path in ("/", "/metrics", "/openapi.json", "/static/app.js"):
        compressed = service.get(path, headers={"Accept-Encoding": "gzip"})
        plain = service.get(path, headers={"Accept-Encoding": "identity"})
        assert compressed.headers["content-encoding"] == "gzip", path
        assert "content-encoding" not in plain.headers
        assert compressed.headers["vary"] == plain.headers["vary"] == "Accept-Encoding"
        if path.startswith("/static"):
            assert compressed.content == plain.content
    large = service.get("/static/swagger-ui-bundle.js", headers={"Accept-Encoding": "gzip"})
    assert "content-encoding" not in large.headers  # it would take long, for each request
    picture = service.get("/static/example.png")
    assert picture.content == (STATIC / "example.png").read_bytes()
