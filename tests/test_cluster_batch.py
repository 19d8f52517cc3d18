"""`unet-segment --engine ray` on a cluster of two nodes with one core each: the same files as on one machine."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import GREY, RGB, Make, png, until
from test_batch import THRESHOLD, files

from batch.__main__ import main
from batch.manifest import MANIFEST
from unet import checkpoint as checkpoints
from unet.imaging import read, write_tiff
from unet.outputs import KINDS

pytestmark = [pytest.mark.cluster, pytest.mark.filterwarnings("ignore::DeprecationWarning")]

N_IMAGES = 200
NODE = {"num_cpus": 1, "object_store_memory": 100 << 20}
COMMAND = [sys.executable, "-m", "batch", "--engine", "ray"]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    cluster_utils = pytest.importorskip("ray.cluster_utils")
    cluster = cluster_utils.Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
    cluster.add_node(**NODE)
    yield cluster
    cluster.shutdown()


@pytest.fixture(autouse=True)
def folder(cluster: Any, make_checkpoint: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the program runs: the default model, and a folder for images."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    (tmp_path / "model").mkdir()
    path = make_checkpoint("model/best_model.pth")
    checkpoints.save(replace(checkpoints.load(path), threshold=THRESHOLD), path)
    (tmp_path / "images").mkdir()
    return tmp_path


def segment(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs the program on the cluster, in a process of its own: another cluster may be joined in this one."""
    return subprocess.run([*COMMAND, *arguments], env=_environment(), capture_output=True, text=True)


def _environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}


def actors(title: str = "ray::MapWorker") -> dict[int, int]:
    """Processes of this cluster of that title, each with the process of its node; by default those of Ray Data, which
    hold the model."""
    found = {}
    for line in subprocess.run(["ps", "-eo", "pid=,ppid=,args="], capture_output=True, text=True).stdout.splitlines():
        pid, parent, command = line.split(maxsplit=2)
        found[int(pid)] = int(parent), command
    ours = {pid for pid, (parent, _) in found.items() if parent == os.getpid()}
    return {pid: node for pid, (node, command) in found.items() if node in ours and command.startswith(title)}


def n_written(pid: int) -> int:
    """Bytes that a process has written."""
    (line,) = (line for line in Path(f"/proc/{pid}/io").read_text().splitlines() if line.startswith("wchar"))
    return int(line.split()[1])


def until_done(n: int) -> None:
    """Waits for so many masks."""
    until(lambda: len(list(Path("masks").glob("*_mask.tif"))) >= n)


def test_both_engines_give_the_same_files(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = folder / "images"
    (images / "day 2").mkdir()
    (images / "cell10.png").write_bytes(png(GREY))
    (images / "cell2.jpg").write_bytes(png(np.kron(RGB, np.ones((2, 2, 1), np.uint8)), ".jpg"))
    (images / "day 2" / "zölle.tif").write_bytes(write_tiff([GREY, GREY[::-1]]))
    (images / "dark.tif").write_bytes(write_tiff([GREY.astype(np.uint16)]))
    (images / "half.png").write_bytes(png(GREY)[:-40])
    arguments = ["images", "--output", ",".join(KINDS)]
    assert main([*arguments, "--out", "local"]) == 1
    local = capsys.readouterr()
    on_ray = segment(*arguments, "--out", "ray")
    again = segment(*arguments, "--out", "ray")
    assert (on_ray.returncode, again.returncode) == (1, 1)
    assert "0 images segmented" in again.stdout
    assert "4 skipped as done, 1 failed" in again.stdout
    assert files(Path("ray")) == files(Path("local"))
    assert len(files(Path("ray"))) == 4 * (len(KINDS) - 1) + 1
    for title, n in (("failed  ", 1), ("warning ", 4)):
        here, there = (
            [line for line in said.splitlines() if line.startswith(title)] for said in (local.err, on_ray.stderr)
        )
        assert len(here) == n
        assert there == here
    assert "cluster   2 nodes, 2 cores\n" in on_ray.stderr
    assert on_ray.stdout.partition(" in ")[0] == "4 images segmented"


def test_large_images_survive_a_lost_node_and_objects_across_seams_are_one(
    cluster: Any, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    large = np.tile(GREY, (150, 124))[:1490, :1480]  # pieces have sides of up to 896 pixels
    large[:, 700:740] = large[800:840] = large.max()
    Path("images/large.tif").write_bytes(write_tiff([large, large[::-1]]))
    Path("images/small.png").write_bytes(png(GREY))
    options = ["images", "--output", "mask,labels,table", "--tta"]
    assert main([*options, "--out", "local"]) == 0
    capsys.readouterr()
    arguments = [*options, "--out", "ray", "--engine", "ray"]
    lowered = f"import batch.cluster as c; c.LARGE = 100_000; from batch.__main__ import main; main({arguments})"
    command = [sys.executable, "-c", lowered]
    with subprocess.Popen(command, env=_environment(), stderr=subprocess.PIPE, text=True) as run:
        until(lambda: len(actors("ray::Actor.answer")) == 2)
        cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)
        cluster.add_node(**NODE)
        _, said = run.communicate(timeout=120)
    assert run.returncode == 0
    assert "large     large.tif: on 2 cores together\n" in said
    assert files(Path("ray")) == files(Path("local"))
    (above, below), *_ = (page[799:801] for page in read("ray/large_labels.tif").pages)  # of two pieces
    assert ((above == below) & (above > 0)).any()


def test_signals_and_a_killed_actor_cost_nothing(folder: Path) -> None:
    rng = np.random.default_rng(0)
    for i in range(N_IMAGES):
        Path(f"images/{i}.tif").write_bytes(write_tiff([rng.integers(0, 256, (256, 256), np.uint8)]))
    arguments = ["images", "--output", "mask,table"]
    assert main([*arguments, "--out", "whole"]) == 0
    n_before, pipes = 0, {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    for n_done, number, status in ((10, signal.SIGINT, 130), (40, signal.SIGTERM, 143), (90, None, 0)):
        with subprocess.Popen([*COMMAND, *arguments], env=_environment(), **pipes) as program:
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


def test_an_image_that_kills_its_process_fails_and_no_other(folder: Path) -> None:
    for i in range(12):
        Path(f"images/{i}.png").write_bytes(png(GREY))
    deadly = """
import os, sys
import batch.cluster
from batch.__main__ import main

class Deadly(batch.cluster.Actor):
    def __init__(self, *arguments):
        super().__init__(*arguments)
        work = self._worker
        self._worker = lambda job: os._exit(1) if dies(job.item.path) else work(job)

def dies(image):
    if image.name == "8.png":  # three times, as one beside a deadly image may
        with image.with_name("deaths").open("a") as deaths:
            deaths.write(".")
            return deaths.tell() <= 3
    return image.name == "7.png"

batch.cluster.Actor = Deadly
sys.exit(main(["images", "--engine", "ray"]))
"""
    ended = subprocess.run([sys.executable, "-c", deadly], env=_environment(), capture_output=True, text=True)
    assert ended.returncode == 1, ended.stderr
    assert len(list(Path("masks").glob("*_mask.png"))) == 11
    assert "11 images segmented in " in ended.stdout
    (failed,) = (line for line in ended.stderr.splitlines() if line.startswith("failed"))
    assert failed.endswith("images/7.png: its process on the cluster died 3 times: Ray's logs may say why")


def test_mistakes_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("images/a.png").write_bytes(png(GREY))
    node = f"(on node {socket.gethostname()})"
    cases = [
        (["--url", "http://localhost:1"], "--engine ray: expected with --model only, found --url"),
        (["--model", "none.pth"], "none.pth: no such file"),
        (["--device", "cuda"], "--device cuda: expected a Ray cluster with a GPU, found none"),
        (
            ["--threshold", "0.5", "--output", "probability", "--class", "x"],
            f"expected background or foreground, found 'x' {node}",
        ),
        ([], "RAY_ADDRESS=127.0.0.1:1: expected a Ray cluster, found: "),
    ]
    programs = []
    for arguments, _ in cases:  # at once, as each starts for seconds
        if not arguments:
            monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
        command = [*COMMAND, "images", *arguments]
        programs.append(subprocess.Popen(command, env=_environment(), stderr=subprocess.PIPE, text=True))
    for program, (_, said) in zip(programs, cases, strict=True):
        _, noise = program.communicate(timeout=120)
        assert program.returncode == 2
        assert said in noise.splitlines()[-1]


def test_a_missing_extra_is_named() -> None:
    Path("images/a.png").write_bytes(png(GREY))
    arguments = ["images", "--engine", "ray"]
    code = f"import sys; sys.modules['ray'] = None; from batch.__main__ import main; sys.exit(main({arguments}))"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    said = (
        "unet-segment: error: ray is not installed; expected the extra: pip install '.[segment,cluster]', in the clone"
    )
    assert (ended.returncode, ended.stderr.splitlines()[-1]) == (2, said)
