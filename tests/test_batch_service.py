"""`unet-segment --url`: the same files as in process, and services that are slow, busy, new, or not there."""

import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from conftest import GREY, RGB, Make, listening, png, running

from batch.__main__ import main
from batch.engine import Stop
from batch.folder import OutFolder
from batch.manifest import MANIFEST, Manifest
from batch.remote import Remote
from batch.settings import SegmentSettings
from service.app import create_app
from service.settings import ServeSettings
from unet import checkpoint as checkpoints
from unet.imaging import write_tiff
from unet.outputs import KINDS


@pytest.fixture
def model(make_checkpoint: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model of three classes, in the folder where the program runs."""
    monkeypatch.chdir(tmp_path)
    return make_checkpoint("model.pth", n_classes=3)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    (folder / "day 2").mkdir(parents=True)
    (folder / "cell10.png").write_bytes(png(GREY))
    (folder / "cell2.jpg").write_bytes(png(RGB, ".jpg"))
    (folder / "day 2" / "zölle, 2.tif").write_bytes(write_tiff([GREY, GREY[::-1]]))
    return folder


@contextmanager
def serving(model: Path, port: int = 0, **settings: Any) -> Iterator[str]:
    """URL of a service in this process."""
    app = create_app(ServeSettings(model=model, device="cpu", watch_s=0.02, **settings))
    with listening(app, port=port) as (host, port):
        yield f"http://{host}:{port}"


def files(folder: str) -> dict[str, bytes]:
    """All that a run has written, without the lock and the manifest."""
    found = (path for path in Path(folder).rglob("*") if path.is_file())
    names = {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}
    return {name: data for name, data in names.items() if not name.endswith(("/lock", "/manifest.jsonl"))}


def test_both_ways_write_the_same_files(images: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i, damaged in enumerate((b"", b"no image", png(GREY)[:-40], write_tiff([GREY])[:-9])):
        (images / f"bad{i}.png").write_bytes(damaged)
    (images / "four.tif").write_bytes(write_tiff([GREY.astype(np.float64)]))
    asked = ["images", "--output", ",".join(KINDS), "--class", "11", "--tta"]
    said = []
    with serving(model) as url:
        for way, out in (["--model", str(model)], "local"), (["--url", f"{url}/segment"], "remote"):
            assert main([*asked, *way, "--out", out]) == 1
            said.append([line for line in capsys.readouterr().err.splitlines() if line[:7] in ("failed ", "warning")])
    assert files("local") == files("remote")
    assert len(files("local")) == 4 * len(KINDS) + 1
    assert said[0] == said[1]
    assert [line[:7] for line in said[0]] == 4 * ["warning"] + 4 * ["failed "]
    # and each knows what the other has done
    assert main([*asked, "--model", str(model), "--out", "remote"]) == 1
    assert ", 4 skipped as done, 4 failed" in capsys.readouterr().out


def test_a_service_that_is_busy_is_asked_again(
    images: Path, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(Stop, "sleep", lambda _, seconds: pauses.append(seconds))
    with serving(model, max_in_flight=1) as url:
        assert main(["images", "--url", url, "--concurrency", "3", "--wait-s", "0"]) == 0  # it is healthy
    assert len(files("masks")) == 3
    assert pauses
    assert 1 <= min(pauses) <= max(pauses) <= 4.5  # Retry-After is 1, 2 or 3
    assert "requests are in flight already (--max-in-flight); try again" in capsys.readouterr().err


def test_a_service_that_starts_late_is_waited_for(
    images: Path, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """First nobody listens, for more than 1024 tries, then there is no model yet."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    trained = model.rename("later.pth")
    with ExitStack() as service:
        steps = iter(
            [*1100 * [lambda: None], lambda: service.enter_context(serving(model, port)), lambda: trained.rename(model)]
        )

        def sleep(stop: Stop, seconds: float) -> None:
            next(steps, lambda: stop.wait(0.01))()

        monkeypatch.setattr(Stop, "sleep", sleep)
        assert main(["images", "--url", f"http://127.0.0.1:{port}"]) == 0
    assert len(files("masks")) == 3
    assert f"waiting for http://127.0.0.1:{port}: [Errno 111] Connection refused" in capsys.readouterr().err


def test_a_service_that_restarts_while_nothing_is_asked_is_waited_for(
    images: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ExitStack() as service:
        with serving(model) as url:
            settings = SegmentSettings(paths=["images"], url=url, wait_s=0)
            engine = service.enter_context(closing(Remote(settings, url, Stop())))
            before = engine.segment("a.png", png(GREY), ["mask"])
        port = int(url.rpartition(":")[2])
        monkeypatch.setattr(Stop, "sleep", lambda *_: service.enter_context(serving(model, port)))
        assert engine.segment("a.png", png(GREY), ["mask"]) == before


def test_an_image_that_ends_the_service_again_and_again_is_listed(
    images: Path, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Fragile(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.wfile.write(b'HTTP/1.0 200 OK\r\n\r\n{"model": {"id": "abc"}}')

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))

    monkeypatch.setattr(Stop, "sleep", lambda *_: None)
    with HTTPServer(("127.0.0.1", 0), Fragile) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        assert main(["images/cell2.jpg", "--url", f"http://127.0.0.1:{server.server_port}"]) == 1
        server.shutdown()
        thread.join()
    assert f"failed    {images}/cell2.jpg: the service broke the connection 5 times: " in capsys.readouterr().err


def test_all_answers_are_of_one_model_when_the_service_gets_another(
    images: Path,
    model: Path,
    make_checkpoint: Make,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for i in range(6):
        (images / f"more{i}.png").write_bytes(png(GREY + i))
    other = make_checkpoint("other.pth", n_classes=3, seed=1)
    ids = [checkpoints.load(path).id for path in (model, other)]
    assert main(["images", "--model", str(other), "--out", "expected", "--output", "mask,table"]) == 0
    capsys.readouterr()
    commit = OutFolder.commit
    with serving(model) as url:

        def committed(*arguments: Any) -> None:
            commit(*arguments)
            if other.exists():
                other.rename(model)
            while httpx.get(f"{url}/health").json()["model"]["id"] != ids[1]:
                pass

        monkeypatch.setattr(OutFolder, "commit", committed)
        assert main(["images", "--url", url, "--output", "mask,table", "--concurrency", "1"]) == 0
    said = f"model     {ids[1]} of {url}, after {ids[0]}: what that one has answered is done again"
    assert said in capsys.readouterr().err
    assert {record.model for record in Manifest(Path("masks")).records.values()} == {ids[1]}
    assert files("masks") == files("expected")


def test_what_a_service_says_about_images(images: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(model, max_pixels=200) as url:
        assert main(["images", "--url", url]) == 1
    failed = [line for line in capsys.readouterr().err.splitlines() if line.startswith("failed    ")]
    assert failed == [
        f"failed    {images}/day 2/zölle, 2.tif: expected at most 200 pixels (--max-pixels), found 12 x 10 on page 2"
    ]


def test_mistakes_end_the_run(images: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def said(*arguments: str) -> str:
        assert main(["images", *arguments]) == 2
        *_, line = capsys.readouterr().err.splitlines()
        return line

    with socket.create_server(("127.0.0.1", 0)) as listener:
        nobody = f"http://127.0.0.1:{listener.getsockname()[1]}"
    assert said("--url", nobody, "--wait-s", "0") == (
        f"unet-segment: error: {nobody}: no answer for 0 s (--wait-s): [Errno 111] Connection refused"
    )
    with serving(model, api_keys=["k1"]) as url:
        expected = "expected a key of this service as `Authorization: Bearer KEY` or `X-API-Key: KEY`, found "
        advice = ": expected --api-key (or SEGMENT_API_KEY) to be one"
        assert said("--url", url) == f"unet-segment: error: {url}: {expected}none{advice}"
        assert said("--url", url, "--api-key", "k2") == f"unet-segment: error: {url}: {expected}another{advice}"
        assert main(["images", "--url", url, "--api-key", "k1"]) == 0
        capsys.readouterr()
        wrong = said("--url", url, "--api-key", "k1", "--threshold", "0.3")
        assert wrong == "unet-segment: error: --threshold: is for binary models; this one has 3 classes"
        found = said("--url", f"{url}/unet", "--api-key", "k1")
        assert found.startswith(f"unet-segment: error: {url}/unet: expected a unet-serve, found ")


@pytest.mark.slow
def test_nothing_is_lost_when_the_service_is_killed_and_restarted(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("images").mkdir()
    for i, image in enumerate(np.random.default_rng(0).integers(0, 256, (300, 24, 24), np.uint8)):
        Path(f"images/{i}.tif").write_bytes(write_tiff([image]))
    asked = ["images", "--output", "mask,table"]
    assert main([*asked, "--model", str(model), "--out", "expected"]) == 0
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

    def fail() -> None:
        for n_done in (50, 200):
            with running("--model", str(model), port=port):
                while len(list(Path("masks").glob("*.tif"))) < n_done:
                    pass
        with running("--model", str(model), port=port):
            ended.wait()

    ended = threading.Event()
    service = threading.Thread(target=fail)
    service.start()
    assert main([*asked, "--url", f"http://127.0.0.1:{port}"]) == 0
    ended.set()
    service.join()
    assert capsys.readouterr().err.count("waiting for http") >= 2
    assert files("masks") == files("expected")
    assert len((Path("masks") / MANIFEST).read_text().splitlines()) == 300
