"""`unet-segment --engine ray` on a cluster of two nodes with one core each: the same files as on one machine."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import GREY, RGB, Make, png
from test_batch import THRESHOLD, fails, files

from batch.__main__ import main
from batch.manifest import MANIFEST
from unet import checkpoint as checkpoints
from unet.imaging import write_tiff
from unet.outputs import KINDS

pytestmark = [pytest.mark.cluster, pytest.mark.filterwarnings("ignore::DeprecationWarning")]

N_IMAGES = 200


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Of the cluster."""
    cluster_utils = pytest.importorskip("ray.cluster_utils")
    node = {"num_cpus": 1, "object_store_memory": 100 << 20}
    cluster = cluster_utils.Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    cluster.add_node(**node)
    yield cluster.address
    cluster.shutdown()


@pytest.fixture(autouse=True)
def folder(address: str, make_checkpoint: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the program runs: the default model, and a folder for images."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAY_ADDRESS", address)
    (tmp_path / "model").mkdir()
    path = make_checkpoint("model/best_model.pth")
    checkpoints.save(replace(checkpoints.load(path), threshold=THRESHOLD), path)
    (tmp_path / "images").mkdir()
    return tmp_path


def actors() -> dict[int, int]:
    """Processes of this cluster that hold the model, each with the process of its node."""
    found = {}
    for line in subprocess.run(["ps", "-eo", "pid=,ppid=,args="], capture_output=True, text=True).stdout.splitlines():
        pid, parent, command = line.split(maxsplit=2)
        found[int(pid)] = int(parent), command
    ours = {pid for pid, (parent, _) in found.items() if parent == os.getpid()}
    return {
        pid: node for pid, (node, command) in found.items() if node in ours and command.startswith("ray::MapWorker")
    }


def n_written(pid: int) -> int:
    """Bytes that a process has written."""
    (line,) = (line for line in Path(f"/proc/{pid}/io").read_text().splitlines() if line.startswith("wchar"))
    return int(line.split()[1])


def until_done(n: int) -> None:
    """Waits for so many masks."""
    pause = threading.Event()
    for _ in range(6000):
        if len(list(Path("masks").glob("*_mask.tif"))) >= n:
            return
        pause.wait(0.02)
    raise AssertionError(f"{n} masks have not come in two minutes")


def test_both_engines_give_the_same_files(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = folder / "images"
    (images / "day 2").mkdir()
    (images / "cell10.png").write_bytes(png(GREY))
    (images / "cell2.jpg").write_bytes(png(np.kron(RGB, np.ones((2, 2, 1), np.uint8)), ".jpg"))
    (images / "day 2" / "zölle.tif").write_bytes(write_tiff([GREY, GREY[::-1]]))
    (images / "dark.tif").write_bytes(write_tiff([GREY.astype(np.uint16)]))
    (images / "half.png").write_bytes(png(GREY)[:-40])
    said = {}
    for engine in ("local", "ray"):
        arguments = ["images", "--output", ",".join(KINDS), "--out", engine, "--engine", engine]
        assert main(arguments) == 1
        said[engine] = capsys.readouterr()
        assert main(arguments) == 1
        assert "0 images segmented" in (again := capsys.readouterr()).out
        assert "4 skipped as done, 1 failed" in again.out
    assert files(Path("ray")) == files(Path("local"))
    assert len(files(Path("ray"))) == 4 * (len(KINDS) - 1) + 1
    for title, n in (("failed  ", 1), ("warning ", 4)):
        local, ray = ([line for line in said[each].err.splitlines() if line.startswith(title)] for each in said)
        assert len(local) == n
        assert ray == local
    assert "cluster   2 nodes, 2 cores\n" in said["ray"].err
    assert said["ray"].out.partition(" in ")[0] == "4 images segmented"
    lines = [line for line in said["ray"].err.replace("\r", "\n").splitlines() if line and "%|" not in line]
    assert [line.split()[0] for line in lines] == ["images", "cluster", "model", *["warning"] * 4, "failed"]


def test_signals_and_a_killed_actor_cost_nothing(folder: Path) -> None:
    rng = np.random.default_rng(0)
    for i in range(N_IMAGES):
        Path(f"images/{i}.tif").write_bytes(write_tiff([rng.integers(0, 256, (256, 256), np.uint8)]))
    arguments = ["images", "--output", "mask,table"]
    assert main([*arguments, "--out", "whole"]) == 0
    path = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-m", "batch", *arguments, "--engine", "ray"]
    n_before = 0
    for n_done, number, status in ((10, signal.SIGINT, 130), (40, signal.SIGTERM, 143), (90, None, 0)):
        with subprocess.Popen(command, env=path, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as program:
            until_done(n_done)
            if number:
                program.send_signal(number)
            else:
                assert len(set(actors().values())) == 2  # nodes
                assert min(map(n_written, actors())) > 10 * 256
                os.kill(next(iter(actors())), signal.SIGKILL)
                n_killed = len(files(Path("masks")))
            said, noise = program.communicate(timeout=120)
        assert program.returncode == status
        n_before = len(Path("masks", MANIFEST).read_text().splitlines()) if number else n_before
        if number:
            assert noise.splitlines()[-1] == f"unet-segment: stopped by {number.name}; the same command goes on"
    assert n_killed < N_IMAGES
    assert f"objects of {N_IMAGES} images in objects.csv" in said
    assert files(Path("masks")) == files(Path("whole"))
    stems = [json.loads(line)["stem"] for line in Path("masks", MANIFEST).read_text().splitlines()]
    assert len(set(stems)) == N_IMAGES
    stems_of_last = stems[n_before:]  # a signal may have come between a line and its files: that image is done again
    assert len(stems_of_last) == len(set(stems_of_last))
    assert not list(Path("masks/.unet-segment/new").iterdir())


def test_mistakes_are_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    Path("images/a.png").write_bytes(png(GREY))
    node = f"(on node {socket.gethostname()})"
    for arguments, said in (
        (["--url", "http://localhost:1"], "--engine ray: expected with --model only, found --url"),
        (["--model", "none.pth"], "none.pth: no such file"),
        (["--device", "cuda"], "--device cuda: expected a Ray cluster with a GPU, found none"),
        (
            ["--threshold", "0.5", "--output", "probability", "--class", "x"],
            f"expected background or foreground, found 'x' {node}",
        ),
    ):
        assert said in fails(["images", "--engine", "ray", *arguments], capsys)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    assert "RAY_ADDRESS=127.0.0.1:1: expected a Ray cluster, found: " in fails(["images", "--engine", "ray"], capsys)


def test_a_missing_extra_is_named() -> None:
    Path("images/a.png").write_bytes(png(GREY))
    arguments = ["images", "--engine", "ray"]
    code = f"import sys; sys.modules['ray'] = None; from batch.__main__ import main; sys.exit(main({arguments}))"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    said = (
        "unet-segment: error: ray is not installed; expected the extra: pip install '.[segment,cluster]', in the clone"
    )
    assert (ended.returncode, ended.stderr.splitlines()[-1]) == (2, said)
