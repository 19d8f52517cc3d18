"""Clients that others make from the OpenAPI document: generated ones, without a warning, and Swagger UI in /docs."""

import importlib
import shutil
import subprocess
import sys
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import numpy as np
import pytest
from conftest import listening, picture

from service.app import create_app
from service.settings import ServeSettings

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = pytest.mark.slow
EXAMPLE = Path(__file__).parent.parent / "service" / "static" / "example.png"


def test_the_generated_python_client_segments_an_image(
    make_checkpoint: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = create_app(ServeSettings(model=make_checkpoint(), device="cpu", api_keys=["k"]))
    with listening(app) as (host, port):
        url = f"http://{host}:{port}"
        command = [Path(sys.executable).with_name("openapi-python-client"), "generate", "--fail-on-warning"]
        folder = tmp_path / "client"
        subprocess.run([*command, "--url", f"{url}/openapi.json", "--output-path", folder], check=True)
        monkeypatch.syspath_prepend(folder)
        package = importlib.import_module("unet_service_client")
        models = importlib.import_module("unet_service_client.models")
        types = importlib.import_module("unet_service_client.types")
        segment = importlib.import_module("unet_service_client.api.images.segment")
        health = importlib.import_module("unet_service_client.api.service.health")

        data = EXAMPLE.read_bytes()
        upload = types.File(payload=BytesIO(data), file_name="cell.png", mime_type="image/png")
        with package.AuthenticatedClient(base_url=url, token="k") as client:
            form = segment.sync_detailed(client=client, body=models.SegmentFilesBody(file=upload))
            raw = segment.sync(client=client, body=types.File(payload=BytesIO(data)), output=models.SegmentOutput.TABLE)
            assert health.sync(client=client).status == "ok"
        with package.AuthenticatedClient(base_url=url, token="another") as client:
            refused = segment.sync(client=client, body=types.File(payload=BytesIO(data)))
        expected = httpx.post(f"{url}/segment", content=data, headers={"X-API-Key": "k"}).content

    assert form.headers["content-disposition"] == 'inline; filename="cell_mask.png"'
    assert np.array_equal(picture(form.parsed.payload.read()), picture(expected))
    assert raw.payload.read().startswith(b'"file","page","id"')
    assert (refused.status, refused.title) == (401, "Unauthorized")


@pytest.mark.skipif(shutil.which("npx") is None, reason="NO NPX HERE: it comes with Node.js")
def test_typescript_knows_the_api(tmp_path: Path) -> None:
    document = tmp_path / "openapi.json"
    with listening(create_app(ServeSettings(device="cpu"))) as (host, port):
        document.write_bytes(httpx.get(f"http://{host}:{port}/openapi.json").content)
    npx = ["npx", "--yes", "openapi-typescript@7"]
    if subprocess.run([*npx, "--version"], capture_output=True, timeout=120).returncode:
        pytest.skip("openapi-typescript cannot be fetched here")
    done = subprocess.run([*npx, document, "-o", tmp_path / "api.ts"], capture_output=True, text=True, timeout=120)
    assert (done.returncode, "warn" in (done.stdout + done.stderr).lower()) == (0, False), done.stderr
    types = (tmp_path / "api.ts").read_text()
    for name in ("segment", "preview", "health", "live", "metrics", "training"):
        assert f'operations["{name}"]' in types


@pytest.mark.browser
@pytest.mark.parametrize("prefix", ["", "/seg"])
def test_docs_try_the_api_out_without_the_internet(
    browser: "Browser", make_checkpoint: Callable[..., Path], prefix: str
) -> None:
    app = create_app(ServeSettings(model=make_checkpoint(), device="cpu", api_keys=["k"]))
    asked: list[str] = []
    problems: list[str] = []
    with (
        listening(app) as (host, port),
        browser.new_context(extra_http_headers={"X-Forwarded-Prefix": prefix}) as context,
    ):
        page = context.new_page()
        page.set_default_timeout(10_000)
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: problems.append(message.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.goto(f"http://{host}:{port}{prefix}/docs")
        page.get_by_role("button", name="Authorize").click()
        page.locator(".auth-container").filter(has_text="X-API-Key").get_by_role("textbox").fill("k")
        page.get_by_role("button", name="Apply credentials").last.click()
        page.get_by_role("button", name="Close").first.click()
        operation = page.locator("#operations-images-segment")
        operation.get_by_role("button").first.click()
        operation.get_by_role("button", name="Try it out").click()
        operation.locator("input[type=file]").set_input_files(EXAMPLE)
        operation.get_by_role("button", name="Execute").click()
        operation.locator(".response img").wait_for()
        widths = page.evaluate("Array.from(document.images, (image) => image.naturalWidth)")
    assert widths == [184, 184, 184, 184]  # three of the description, and the mask
    assert problems == []
    own = ("blob:", f"http://{host}:{port}{prefix}/")
    assert [url for url in asked if not url.startswith(own)] == []
