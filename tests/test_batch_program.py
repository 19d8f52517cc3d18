"""`unet-segment` as a program: its start, signals, `kill -9`, and folders that are watched."""

import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import GREY, Make, png, until

from batch import inputs
from batch.__main__ import main
from batch.engine import Stop
from unet.imaging import write_tiff


@pytest.fixture(autouse=True)
def folder(make_checkpoint: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the program runs: a model, and a folder for images."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    make_checkpoint("model/best_model.pth")
    (tmp_path / "images").mkdir()
    return tmp_path


def masks() -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(Path("masks").glob("*_mask.*"))}


def test_help_loads_nothing_that_takes_long() -> None:
    code = "import sys, batch.__main__ as b\ntry: b.main(['--help'])\nfinally: print(*sys.modules, file=sys.stderr)"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (ended.returncode, "--url URL" in ended.stdout) == (0, True)
    assert not {"torch", "numpy", "cv2", "httpx", "tqdm", "batch.run"} & set(ended.stderr.split())


@pytest.mark.parametrize("missing", ["tqdm", "httpx"])
def test_a_missing_extra_is_named(missing: str) -> None:
    Path("images/a.png").write_bytes(png(GREY))
    arguments = ["images", "--url", "http://localhost:1"]
    code = f"import sys; sys.modules[{missing!r}] = None; from batch.__main__ import main; sys.exit(main({arguments}))"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    said = (
        f"unet-segment: error: {missing} is not installed; expected the extra: pip install '.[segment]', in the clone"
    )
    assert (ended.returncode, ended.stderr.splitlines()[-1]) == (2, said)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -signal.SIGKILL)]
)
def test_whatever_ends_the_program_the_same_command_goes_on(number: signal.Signals, status: int) -> None:
    images = np.random.default_rng(0).integers(0, 256, (200, 24, 24), np.uint8)
    for i, image in enumerate(images):
        Path(f"images/{i}.tif").write_bytes(write_tiff([image]))
    command = [sys.executable, "-m", "batch", "images", "--output", "mask,table", "--threshold", "0.432"]
    path = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    assert main([*command[3:], "--out", "whole"]) == 0
    for n_done in (20, 120):
        with subprocess.Popen(command, env=path, stderr=subprocess.DEVNULL) as program:
            until(lambda: len(list(Path("masks").glob("*_mask.tif"))) >= n_done)  # noqa: B023
            program.send_signal(number)
            assert program.wait(timeout=60) == status
    assert len(masks()) < 200
    assert main(command[3:]) == 0
    assert masks() == {path.name: path.read_bytes() for path in sorted(Path("whole").glob("*_mask.*"))}
    assert Path("masks/objects.csv").read_bytes() == Path("whole/objects.csv").read_bytes()
    assert {path.name for path in Path("masks").iterdir()} == {*masks(), "objects.csv", ".unet-segment"}
    assert not list(Path("masks/.unet-segment/new").iterdir())


def test_files_are_taken_when_they_do_not_change_between_two_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    def item(name: str, size: int) -> inputs.Item:
        return inputs.Item(Path(name), name, size, mtime_ns=size)

    seen = [[item("a", 1)], [item("a", 2), item("b", 0)], [item("a", 2), item("b", 0), item("c", 1)], [item("c", 1)]]
    looks = iter([inputs.Look(Path("masks"), set(), {each.path: each for each in items}) for items in seen])
    pauses: list[float] = []
    taken = inputs.arriving(lambda: next(looks), pauses.append)
    clock = itertools.count()  # segmenting takes long, which does not delay the next look
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    assert [(next(taken), [next(clock) for _ in range(99)])[0] for _ in seen] == [
        [],
        [],
        [item("a", 2)],
        [item("c", 1)],
    ]
    assert pauses == [4] * 3


def test_a_watched_folder(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Files that grow, are damaged, or vanish again; a folder that comes later."""
    monkeypatch.setattr(inputs, "LOOK_S", 0.02)
    whole = write_tiff([GREY])
    Path("images/first.png").write_bytes(png(GREY))

    def microscope() -> None:
        until(lambda: "first_mask.png" in masks())
        Path("images/empty.png").write_bytes(b"")
        Path("images/bad.png").write_bytes(b"no image")
        Path("images/gone.png").write_bytes(png(GREY))
        Path("images/gone.png").unlink()
        with Path("images/growing.tif").open("wb") as file:
            for i in range(0, len(whole), 50):
                file.write(whole[i : i + 50])
                file.flush()
        until(lambda: "growing_mask.tif" in masks())
        Path("images/night 2").mkdir()
        Path("images/night 2/last.png").write_bytes(png(GREY))
        until(Path("masks/night 2/last_mask.png").exists)
        until(lambda: Path("masks/objects.csv").exists() and "last.png" in Path("masks/objects.csv").read_text())
        Path("images/first.png").unlink()  # to make room
        os.kill(os.getpid(), signal.SIGINT)

    microscopist = threading.Thread(target=microscope)
    microscopist.start()
    assert main(["images", "--watch", "--output", "mask", "--output", "table", "--threshold", "0.432"]) == 1
    microscopist.join()
    said = capsys.readouterr()
    assert said.err.count("failed    ") == 1
    assert "images/bad.png: expected an image" in said.err
    assert said.out.startswith("3 images segmented in ")
    assert "1 failed, 3 objects of 3 images in objects.csv" in said.out


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 0), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_watch(monkeypatch: pytest.MonkeyPatch, number: signal.Signals, status: int) -> None:
    Path("images/first.png").write_bytes(png(GREY))

    def between_looks(stop: Stop, seconds: float = 0) -> None:
        if seconds and masks():
            signal.raise_signal(number)

    monkeypatch.setattr(Stop, "sleep", between_looks)
    assert main(["images", "--watch"]) == status
