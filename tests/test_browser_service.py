"""The page in a browser, and a service that comes, goes, changes its model, refuses: the page says so and goes on."""

import json
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import bright_model
import httpx
import numpy as np
import pytest
from bright_model import cells
from conftest import connect, listening, png
from visitor import Visitor

from service.app import create_app
from service.settings import ServeSettings

Visit = Callable[..., Visitor]

pytestmark = pytest.mark.browser

CELLS, OTHER = cells(1), cells(2)
NO_ANSWER = 0


@contextmanager
def serving(model: Path, port: int = 0, **settings: Any) -> Iterator[str]:
    app = create_app(ServeSettings(model=model, device="cpu", precision="fp32", watch_s=0.05, **settings))
    with listening(app, port) as (host, port):
        yield f"http://{host}:{port}"


def replace(url: str, model: Path, **about: Any) -> str:
    """Puts another model there, at once. Returns the id of the one before, when the service has the new one."""
    before: str = httpx.get(f"{url}/health").json()["model"]["id"]
    bright_model.save(model.with_name("new"), **about).replace(model)
    while httpx.get(f"{url}/health").json()["model"]["id"] == before:
        pass
    return before


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return bright_model.save(tmp_path / "model.pth")


def expect_mask(visitor: Visitor, image: np.ndarray, above: float = 0.5) -> None:
    """The screen shows the mask of this image by a model that has its edge there."""
    visitor.wait_for("done")
    visitor.wait_for_numbers()
    assert (visitor.mask(*image.shape) == (image > 255 * above)).all()


def test_a_page_without_a_model_waits_for_it(visit: Visit, tmp_path: Path) -> None:
    with serving(tmp_path / "model.pth") as url:
        visitor = visit(url)
        visitor.expected = {503}  # of /health
        visitor.exactly("#empty-title", "There is no model yet").wait_for()
        progress = {"state": "running", "epoch": 3, "epochs": 10, "done": 0.25, "seconds": 35, "seconds_left": 125}
        now = datetime.now(UTC).isoformat()
        (tmp_path / "progress.json").write_text(json.dumps(progress | {"classes": {"255": "cell"}, "written": now}))
        (tmp_path / "history.csv").write_text("epoch,loss,score,seconds\n1,1.2,0.6,15\n2,0.9,0.75,15\n")
        visitor.drop(("cell.png", png(CELLS)))  # the page does not wait for the training to be told
        visitor.exactly("#caption-state", "Waiting for the model").wait_for()
        visitor["#training-text"].get_by_text("Epoch 3 of 10. Score so far: 0.75.").wait_for()
        assert visitor["#curve"].get_attribute("aria-label") == (
            "Curve over 2 epochs: score from 0.60 to 0.75; loss from 1.2 to 0.9"
        )
        assert visitor["#training-meter"].get_attribute("aria-valuenow") == "25"
        assert "epoch 3 of 10" in visitor.says("#service-text")

        (tmp_path / "model.pth").write_bytes(b"half a model")
        visitor.exactly("#service-text", "Model cannot be used").wait_for()
        bright_model.save(tmp_path / "new").replace(tmp_path / "model.pth")
        expect_mask(visitor, CELLS)
        assert "12 March 2026" in visitor.says("#model-facts")
        assert "8 annotated images" in visitor.says("#model-facts")


def test_a_newer_model_is_told_of_and_changes_nothing_by_itself(visit: Visit, model: Path) -> None:
    with serving(model) as url:
        visitor = visit(url)
        visitor.drop(("cell.png", png(CELLS)), ("other.png", png(OTHER)))
        expect_mask(visitor, CELLS)
        replace(url, model, edges=(0.6,))
        visitor["#notice-newer"].wait_for()
        assert visitor.says("#notice-newer p").startswith("A newer model is here.")
        expect_mask(visitor, CELLS)
        visitor["#save-mask"].click()
        assert "A newer model has taken over" in visitor.says("#notice-save p")
        expect_mask(visitor, CELLS)
        visitor["#notice-newer"].get_by_role("button", name="Segment again").click()
        visitor["#notice-newer"].wait_for(state="detached")
        expect_mask(visitor, CELLS, above=0.6)
        visitor.press("n")
        expect_mask(visitor, OTHER, above=0.6)
        visitor.save(visitor["#save-mask"].click)


def test_a_model_that_comes_while_images_are_computed(visit: Visit, model: Path) -> None:
    images = [cells(seed) for seed in range(5)]
    with serving(model) as url:
        visitor = visit(url)
        with visitor.held() as waiting:
            visitor.drop(*((f"{i}.png", png(image)) for i, image in enumerate(images)))
            waiting.expect(2)
            first = next(route for route in waiting if b'filename="0.png"' in (route.request.post_data_buffer or b""))
            waiting.remove(first)
            first.continue_()
            visitor.wait_for("done")
            before = replace(url, model, edges=(0.6,))
        visitor["#notice-newer"].wait_for()
        for i, image in reversed([*enumerate(images)]):
            visitor["#thumbnails .thumbnail"].nth(i).click()
            visitor['#result:not([data-state="none"])'].wait_for()
            assert (visitor.mask(*image.shape) == (image > 255 * (0.6 if i else 0.5))).all()
            assert (visitor.says("#model-facts").split()[-1] == before) == (i == 0)


def test_a_zip_is_not_of_two_models(visit: Visit, model: Path) -> None:
    with serving(model) as url:
        visitor = visit(url)
        with visitor.held() as waiting:
            visitor.drop(("cell.png", png(CELLS)), ("other.png", png(OTHER)))
            waiting.expect(2)
            visitor["#save-all"].click()
            visitor["#zip-start"].click()
            replace(url, model, edges=(0.6,))
        visitor["#zip-problems"].get_by_text("cell.png: A newer model has taken over").wait_for()
        assert visitor.says("#zip-state") == "Nothing was saved"


def test_a_service_that_was_away_is_found_again(visit: Visit, model: Path) -> None:
    with serving(model) as url:
        visitor = visit(url)
        visitor.drop(("cell.png", png(CELLS)))
        expect_mask(visitor, CELLS)
    visitor.expected = {NO_ANSWER, 503}
    visitor.drop(("other.png", png(OTHER)))
    visitor["#notice-offline"].wait_for()
    visitor.exactly("#caption-state", "Waiting for the service").wait_for()
    with serving(model, int(url.rpartition(":")[2])):
        expect_mask(visitor, OTHER)
        visitor["#notice-offline"].wait_for(state="detached")
        visitor.press("p")
        expect_mask(visitor, CELLS)
        visitor.page.goto("about:blank")


def test_a_connection_that_breaks_is_tried_again(visit: Visit, bright: str) -> None:
    visitor = visit(bright)
    visitor.expected = {NO_ANSWER}
    with visitor.held() as waiting:
        visitor.drop(("cell.png", png(CELLS)))
        for _ in range(3):
            waiting.expect(1)
            waiting.pop().abort()
        visitor.wait_for("failed")
        assert visitor.says("#problem-title") == "The connection broke"
    visitor["#retry"].click()
    expect_mask(visitor, CELLS)


def test_an_upload_that_never_arrives_is_not_sent_for_ever(visit: Visit, bright: str) -> None:
    """As where a server on the way refuses it by closing the connection."""
    visitor = visit(bright)
    visitor.expected = {NO_ANSWER}
    visitor.page.clock.install()
    sent: list[str] = []
    for path in ("preview", "segment"):
        visitor.page.route(f"{visitor.url}/{path}", lambda route: (sent.append(route.request.url), route.abort()))
    visitor.drop(("depth.png", png(CELLS.astype(np.uint16) * 257)))
    visitor.wait_for("failed")
    n = len(sent)
    with visitor.held("health") as looks:
        for _ in range(3):
            while not looks:
                visitor.page.clock.fast_forward(6000)
                visitor.page.wait_for_timeout(10)
            looks.pop().continue_()
        assert len(sent) == n


def test_a_key_is_asked_for_once(visit: Visit, model: Path) -> None:
    with serving(model, api_keys=["right"]) as url:
        visitor = visit(url)
        visitor.expected = {401}
        visitor.drop(("cell.png", png(CELLS)), ("other.png", png(OTHER)))
        dialog = visitor["#key-dialog"]
        dialog.get_by_label("Key").fill("wrong")
        dialog.get_by_role("button", name="Use this key").click()
        dialog.get_by_text("That key was not accepted.").wait_for()
        dialog.get_by_label("Key").fill("right")
        visitor.press("Enter")
        expect_mask(visitor, CELLS)
        visitor.press("n")
        expect_mask(visitor, OTHER)
        visitor.expected = set()

        visitor.page.reload()
        visitor.drop(("cell.png", png(CELLS)))
        expect_mask(visitor, CELLS)
        assert "right" not in visitor.page.evaluate("JSON.stringify(localStorage) + document.cookie")
        assert visitor.context.cookies() == []
        assert visitor.open().evaluate("sessionStorage.length") == 0


def test_a_key_that_is_not_given_can_be_given_later(visit: Visit, model: Path) -> None:
    with serving(model, api_keys=["right"], keys_everywhere=True) as url:
        visitor = visit(url)
        visitor.expected = {401}
        visitor["#key-dialog"].get_by_role("button", name="Not now").click()
        visitor["#notice-key"].get_by_role("button", name="Enter the key").click()
        visitor["#key"].fill("right")
        visitor.press("Enter")
        visitor["#notice-key"].wait_for(state="detached")
        visitor.drop(("cell.png", png(CELLS)))
        expect_mask(visitor, CELLS)


@pytest.mark.parametrize("limit", ["max_bytes", "max_pixels"])
def test_a_large_image_is_refused_in_words(visit: Visit, model: Path, limit: str) -> None:
    with serving(model, **{limit: 9000}) as url:
        visitor = visit(url)
        visitor.expected = {413}
        visitor.drop(("large.png", png(CELLS)), ("small.png", png(CELLS[:60, :70])))
        visitor.wait_for("failed")
        assert visitor.says("#problem-title") == "Too large for this service"
        assert f"--{limit.replace('_', '-')}" in visitor.says("#problem-detail") or "9000" in visitor.says(
            "#problem-detail"
        )
        assert visitor["#save-mask"].is_disabled()
        visitor["#remove"].click()
        expect_mask(visitor, CELLS[:60, :70])


def test_a_busy_service_is_waited_for(visit: Visit, model: Path) -> None:
    with serving(model, max_in_flight=1) as url:
        visitor = visit(url)
        visitor.expected = {503}
        host, _, port = url.removeprefix("http://").partition(":")
        with connect((host, int(port))) as slow:
            slow.sendall(b"POST /segment HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nhalf")
            while httpx.post(f"{url}/preview", content=png(CELLS)).status_code != 503:
                pass
            visitor.drop(("cell.png", png(CELLS)))
            visitor.exactly("#caption-state", "Waiting its turn").wait_for()
            slow.shutdown(socket.SHUT_RDWR)
        expect_mask(visitor, CELLS)


def test_behind_a_prefix(visit: Visit, bright: str) -> None:
    """As a gateway that tells the prefix; whatever the page asks for outside of it is refused."""
    visitor = visit(f"{bright}/seg", extra_http_headers={"X-Forwarded-Prefix": "/seg"})
    visitor["#example"].click()
    visitor.wait_for_numbers()
    visitor.drop(("depth.png", png(CELLS.astype(np.uint16) * 257)))  # by way of /preview
    expect_mask(visitor, CELLS)
    visitor.save(visitor["#save-overlay"].click)
    visitor["#docs"].click()
    visitor.page.get_by_role("heading", name="unet-service").wait_for()
