"""Shared fixtures: small models, an app served in this process or as a program, and the folder of real data."""

import asyncio
import io
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if "PYTEST_XDIST_WORKER" in os.environ:  # processes that share the cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from unet import NetworkConfig, Predictor
from unet import checkpoint as checkpoints
from unet.checkpoint import Checkpoint
from unet.outputs import Legend
from unet.pixels import Preprocessing
from unet.prediction import Piece, Prediction

if TYPE_CHECKING:  # imported where used: the trainer's tests need none of it
    from fastapi.testclient import TestClient
    from playwright.sync_api import Browser
    from ray_cluster import Servers
    from visitor import Visitor

    from service.queue import Queue

Make = Callable[..., Path]
Serve = Callable[..., AbstractContextManager["TestClient"]]
R = TypeVar("R")

CPU = torch.device("cpu")

GREY = np.arange(0, 240, 2, dtype=np.uint8).reshape(10, 12)
RGB = np.stack([GREY, GREY // 2, 255 - GREY], axis=2)
"""Pictures for files."""

LEGEND = Legend(
    threshold=0.5,
    class_values=(0, 255),
    class_names=("background", "nucleus"),
    class_colours=((0, 0, 0), (255, 138, 0)),
    objects=False,
    min_area=1,
)
"""What the results of a binary model without learned borders mean."""


def _server(item: pytest.Function) -> object:
    return item.callspec.params.get("serve") if hasattr(item, "callspec") else None


INSIDE = "looks into the application, or changes it, in this process"
FROM_ZERO = "counts from the start of the application; a replica has answered other tests before"
ONE_EACH = "needs a deployment for each of its cases"
NO_HEADER = "sends a header that HTTP does not allow, which no client or server lets through"
NOT_ON_RAY = {
    "test_logs": "reads the log of this process",
    "test_reload": INSIDE,
    "test_real_data": "is about training",
    "test_metrics_endpoint": FROM_ZERO,
    "test_the_key_is_checked_before_the_body_is_read": INSIDE,
    "test_no_error_reveals_paths_or_versions": INSIDE + "; and Ray's proxy says `Server: uvicorn`",
    "test_a_model_file_that_would_run_code_is_refused_and_runs_none": INSIDE,
    "test_health_without_a_model_file_and_when_it_appears": INSIDE,
    "test_the_last_inference_error_is_shown_until_a_success": INSIDE,
    "test_too_many_waiting_large_images_are_refused": INSIDE,
    "test_a_body_with_a_request_for_a_file_is_not_read": FROM_ZERO,
    "test_a_page_of_a_stack_is_segmented_as_that_page_alone": FROM_ZERO,
    "test_a_preview_has_the_limits_and_errors_of_segment": INSIDE,
    "test_503_when_there_is_no_memory_for_an_image": INSIDE,
    "test_503_when_too_many_are_in_flight": INSIDE,
    "test_only_the_image_is_held_while_its_prediction_waits": INSIDE,
    "test_the_mean_of_several_views_takes_room_for_each_class": INSIDE,
    "test_forms_that_are_not[ray-no boundary]": NO_HEADER,
    "test_401_says_how_to_send_a_key[ray-headers8-found another]": NO_HEADER,
    "test_bytes": ONE_EACH,
    "test_folders_pipes_and_links": ONE_EACH,
    "test_a_pipe_is_refused_as_a_model_file": ONE_EACH,
    "test_a_file_name_that_is_not_utf_8": ONE_EACH,
    "test_openapi_declares_keys_where_they_are_needed": ONE_EACH,
    "test_the_page_needs_no_key_as_it_asks_for_it": ONE_EACH,
    "test_a_service_that_waits_for_its_model_follows_the_training": INSIDE,
    "test_a_form_is_never_written_to_disk": INSIDE,
    "test_of_a_history_that_is_too_large_the_end_is_read": INSIDE,
}
"""Tests and modules of HTTP that run against one process only, and why. All others that use `serve` also run on Ray."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    on_ray = {item for item in items if isinstance(item, pytest.Function) and _server(item) == "ray"}
    left_out = {item for item in on_ray if {item.name, item.originalname, item.path.stem} & NOT_ON_RAY.keys()}
    items[:] = [item for item in items if item not in left_out]
    # the default settings first, as other ones need new replicas
    items.sort(key=lambda item: item in on_ray and "client" not in item.fixturenames)
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="NO GPU HERE: this test needs one"))
        if item.get_closest_marker("realdata") and "UNET_REAL_DATA" not in os.environ:
            item.add_marker(pytest.mark.skip(reason="UNET_REAL_DATA names no folder of real data"))


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("TRAINER_", "SERVICE_", "SEGMENT_")):
            monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def _every_epoch_is_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    """Saves after each epoch, however short the epochs of a test are, and writes no file at other moments."""
    if hasattr(sys.modules.get("trainer.run"), "SAVING_SHARE"):
        monkeypatch.setattr("trainer.run.SAVING_SHARE", 1.0)
        monkeypatch.setattr("trainer.heartbeat.EVERY_S", 1000)


@pytest.fixture
def real_data() -> Path:
    return Path(os.environ["UNET_REAL_DATA"])


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `--out` folder of a short run on the embedded sample: a model that really segments."""
    from trainer.__main__ import main as train

    out = tmp_path_factory.mktemp("trained")
    assert train(["--recipe", "quick", "--base-channels", "8", "--epochs", "4", "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def browser() -> "Iterator[Browser]":
    """Chromium without a window. Not for the session: as long as it is there, `asyncio.run` fails."""
    playwright = pytest.importorskip("playwright.sync_api")
    if not (chromium := shutil.which("chromium")):
        pytest.skip("no chromium")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def visit(browser: "Browser") -> "Iterator[Callable[..., Visitor]]":
    """`visit(url, color_scheme="dark")`: somebody at the page there. Nothing may be asked of other hosts, and nothing
    go wrong that is not expected."""
    from visitor import Visitor

    visitors: list[Visitor] = []

    def start(url: str, **how: Any) -> Visitor:
        visitors.append(Visitor(browser.new_context(**{"viewport": {"width": 1280, "height": 800}, **how}), url))
        return visitors[-1]

    yield start
    for visitor in visitors:
        visitor.context.close()
    assert [visitor.outside + visitor.problems for visitor in visitors] == [[]] * len(visitors)


@pytest.fixture(scope="module")
def bright(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a service whose model takes for foreground what is bright."""
    import bright_model

    from service.app import create_app
    from service.settings import ServeSettings

    model = bright_model.save(tmp_path_factory.mktemp("bright") / "model.pth")
    with listening(create_app(ServeSettings(model=model, device="cpu", precision="fp32"))) as (host, port):
        yield f"http://{host}:{port}"


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Four images of bright discs on a dark ground."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:40, 0:48]
    for part in ("Training_Images", "Training_Labels"):
        (tmp_path / "data" / part).mkdir(parents=True)
    for i in range(4):
        disc = (y - 20) ** 2 + (x - 10 - 9 * i) ** 2 < 80
        image = np.where(disc, 180, 60) + rng.normal(0, 8, disc.shape)
        (tmp_path / "data" / "Training_Images" / f"{i}.png").write_bytes(png(image.astype(np.uint8)))
        (tmp_path / "data" / "Training_Labels" / f"{i}.png").write_bytes(png(disc.astype(np.uint8)))
    return tmp_path / "data"


@pytest.fixture
def make_checkpoint(tmp_path: Path) -> Callable[..., Path]:
    """`make_checkpoint(n_classes=3, ...)`: a file with a small network of random weights."""

    def make(name: str = "best_model.pth", *, seed: int = 0, **network: Any) -> Path:
        torch.manual_seed(seed)
        config = NetworkConfig(**{"base_channels": 4, **network})
        classes = (0, 255) if config.n_classes == 1 else tuple(range(10, 10 + config.n_classes))
        checkpoint = Checkpoint(
            network=config,
            preprocessing=Preprocessing(),
            state_dict=config.build().state_dict(),
            class_values=classes,
            training={"epoch": 7, "score": 0.5},
        )
        path = tmp_path / name
        checkpoints.save(checkpoint, path)
        return path

    return make


@pytest.fixture(scope="session")
def ray_servers(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[Servers]":
    """A Ray cluster, for all tests of the session."""
    from ray_cluster import Servers

    servers = Servers(tmp_path_factory.mktemp("ray"))
    yield servers
    servers.close()


@pytest.fixture(params=["process", pytest.param("ray", marks=pytest.mark.cluster)])
def serve(request: pytest.FixtureRequest) -> Serve:
    """`with serve(model=path, max_bytes=1000) as client`: the app with these settings, in this process; with
    `-m cluster`, on a Ray cluster."""
    if request.param == "ray":
        return request.getfixturevalue("ray_servers").serve  # type: ignore[no-any-return]
    from fastapi.testclient import TestClient

    from service.app import create_app
    from service.settings import ServeSettings

    def start(**settings: Any) -> AbstractContextManager[TestClient]:
        return TestClient(create_app(ServeSettings(device="cpu", **settings)))

    return start


@pytest.fixture
def client(trained: Path, serve: Serve) -> "Iterator[TestClient]":
    """The app, serving the trained model."""
    with serve(model=trained / "best_model.pth") as client:
        yield client


@contextmanager
def listening(app: Any, port: int = 0, **settings: Any) -> Iterator[tuple[str, int]]:
    """The app on that port, or a free one, with uvicorn configured as `unet-serve` does it; yields host and port."""
    import uvicorn

    from service.server import server_config
    from service.settings import ServeSettings

    config = server_config(ServeSettings(device="cpu", grace_s=1, **settings), app=lambda: app)
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", port)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield listener.getsockname()
        finally:
            server.should_exit = True
            thread.join()


def until(found: Callable[[], R]) -> R:
    """Waits for what another thread, or program, is about to do: until something is found, which is returned."""
    end = time.monotonic() + 120
    while not (what := found()):
        assert time.monotonic() < end, "nothing has come in two minutes"
        time.sleep(0.01)
    return what


def connect(address: tuple[str, int]) -> socket.socket:
    return socket.create_connection(address, timeout=30)


def received(connection: socket.socket) -> bytes:
    """All bytes until the other side closes the connection."""
    data = b""
    try:
        while piece := connection.recv(65536):
            data += piece
    except ConnectionResetError:
        pass
    return data


def drip(connection: socket.socket, piece: bytes) -> bytes:
    """Sends a piece every tenth of a second until the other side closes the connection; returns its answer."""
    said = b""
    connection.settimeout(0.1)
    for _ in range(300):
        try:
            connection.sendall(piece)
            if not (data := connection.recv(65536)):
                return said
            said += data
        except TimeoutError:
            continue
        except (ConnectionResetError, BrokenPipeError):
            return said
    raise AssertionError("the connection is still open after half a minute")


@contextmanager
def running(*arguments: str, port: int = 0) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`unet-serve` on that port, or a free one, and its URL. A request while it is loading waits for its answer."""
    command = [sys.executable, "-m", "service", "--port", str(port), *arguments]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as program:
        try:
            assert program.stderr is not None
            lines = iter(program.stderr.readline, "")
            url = next(found[1] for line in lines if (found := re.search(r"listening on (http://\S+)", line)))
            yield program, url
        finally:
            program.kill()


def png(image: np.ndarray, suffix: str = ".png") -> bytes:
    ok, data = cv2.imencode(suffix, image[..., ::-1] if image.ndim == 3 else image)
    assert ok
    return data.tobytes()


def pil(image: Image.Image, kind: str, **options: object) -> bytes:
    """An image file written by Pillow."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def picture(data: bytes) -> np.ndarray:
    """The pixels of an answer, read with OpenCV: (H, W), or (H, W, 3) RGB."""
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB) if image.ndim == 3 else image


class Spy(Predictor):
    """Records the batches that are computed, in `computed`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.begun = threading.Event()
        self.computed: list[list[Prediction]] = []

    def compute(self, pieces: Sequence[Piece]) -> None:
        self.begun.set()
        self.computed.append([piece.prediction for piece in pieces])
        super().compute(pieces)


@pytest.fixture
def predictor(make_checkpoint: Make) -> Spy:
    predictor = Spy.load(make_checkpoint(bilinear=False), device="cpu", precision="fp32")
    predictor.tile = 256
    return predictor


@pytest.fixture
def queue() -> "Iterator[Queue]":
    """A queue with one inference thread."""
    from service.queue import Queue

    queue = Queue(CPU, n_threads=1)
    yield queue
    queue.close()


def run(work: Coroutine[Any, Any, R]) -> R:
    return asyncio.run(asyncio.wait_for(work, 30))


def start(predictor: Predictor, side: int, seed: int = 0) -> Prediction:
    image = np.random.default_rng(seed).integers(0, 256, (side, side), dtype=np.uint8)
    return predictor.start(image, "mask")
