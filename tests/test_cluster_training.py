"""Training on several nodes: `torchrun` loses a worker, or a node, and goes on; Ray shares out folds and curves."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conftest import until
from trainer_runs import TORCHRUN, arguments, assert_same_run, contents, history, train

pytestmark = [pytest.mark.cluster, pytest.mark.filterwarnings("ignore::DeprecationWarning")]

# A small recipe without flags, which on a CPU would choose its width and length. The process with VICTIM dies in the
# middle of epoch 3, unless it has been restarted; with VICTIM=node its agent, its parent process, dies with it.
PROGRAM = """
import os, signal, sys
from dataclasses import replace
from trainer import run
from trainer.__main__ import main
from trainer.learner import Learner
from trainer.recipes import RECIPES

small = RECIPES["default"].override(base_channels=8, image_size=32, batch_size=2, epochs=4)
RECIPES["default"] = replace(small, min_steps=3)
run.SAVING_SHARE = 1.0  # save every epoch
step, victim, taken = Learner.step, os.environ.get("VICTIM"), 0

def dies(self, *batch):
    global taken
    taken += 1
    if victim and taken == 8 and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        for process in [os.getppid()] * (victim == "node") + [os.getpid()]:
            os.kill(process, signal.SIGKILL)
    return step(self, *batch)

Learner.step = dies
sys.exit(main())
"""

OTHER_IMAGES = """
import os, sys
from trainer.__main__ import main
rank = os.environ["RANK"]
sys.exit(main([f"data{rank}" if each == "data" else each for each in sys.argv[1:]]))
"""

# Without it the store of the process group outlives a restart: processes look for each other at addresses of dead ones.
FRESH_STORE = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}


def two_nodes(folder: Path, out: Path, victim: str = "", last_call: int = 60) -> list[tuple[int, str, str]]:
    """Run PROGRAM with an agent of torchrun for each of two nodes; the victim is on the second one. Exit status, stdout
    and stderr of both agents."""
    (folder / "program.py").write_text(PROGRAM)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    agents = []
    for first in (True, False):
        conf = f"is_host={first},last_call_timeout={last_call},keep_alive_interval=1,keep_alive_max_attempt=3"
        command = [sys.executable, "-m", "torch.distributed.run", "--nnodes=1:2", "--nproc-per-node=1"]
        command += ["--max-restarts=3", "--monitor-interval=0.1", "--rdzv-backend=c10d", f"--rdzv-conf={conf}"]
        command += [f"--rdzv-endpoint=127.0.0.1:{port}", str(folder / "program.py"), "--data", str(folder / "data")]
        command += ["--out", str(out), "--device", "cpu"]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "VICTIM": "" if first else victim, **FRESH_STORE}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        agents.append(subprocess.Popen(command, env=environment, text=True, **pipes))
    said = [agent.communicate(timeout=200) for agent in agents]
    return [(agent.returncode, *each) for agent, each in zip(agents, said, strict=True)]


def epochs(out: Path) -> list[str]:
    return [row["epoch"] for row in history(out)]


def test_a_killed_worker_costs_no_more_than_its_epoch(data: Path, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert [status for status, *_ in two_nodes(tmp_path, whole)] == [0, 0]
    agents = two_nodes(tmp_path, parts, victim="worker")
    assert [status for status, *_ in agents] == [0, 0]
    printed = agents[0][1]
    assert printed.count("going on after epoch 2, where an earlier run was interrupted") == 1
    assert epochs(parts) == ["1", "2", "3", "4"]
    assert_same_run(parts, whole)
    assert contents(parts).keys() == contents(whole).keys()


def test_a_lost_node_leaves_the_other_one_to_go_on(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (status, printed, errors), (killed, *_) = two_nodes(tmp_path, out, victim="node", last_call=10)
    assert (status, killed) == (0, -signal.SIGKILL), errors
    assert "another process of this run has ended" in errors
    assert printed.count("going on after epoch 2, where an earlier run was interrupted") == 1
    assert epochs(out) == ["1", "2", "3", "4"]
    assert {"best_model.pth", "report.json"} <= contents(out).keys()


def test_nodes_with_other_images_are_refused(data: Path, tmp_path: Path) -> None:
    data.rename(tmp_path / "data0")
    shutil.copytree(tmp_path / "data0", tmp_path / "data1")
    image = tmp_path / "data1" / "Training_Images" / "0.png"
    image.write_bytes(image.with_name("1.png").read_bytes())
    (tmp_path / "program.py").write_text(OTHER_IMAGES)
    command = [sys.executable, *TORCHRUN, "program.py", *arguments(data="data", out="out")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode == 1
    said = "unet-train: error: --data, --out: expected the same files on all nodes, found others on one of them"
    assert said in ended.stderr  # torchrun may end the other process before it says so, too
    assert not (tmp_path / "out" / "last.pth").exists()


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Address of a Ray cluster of two nodes with one core each."""
    cluster_utils = pytest.importorskip("ray.cluster_utils")
    node = {"num_cpus": 1, "object_store_memory": 100 << 20}
    cluster = cluster_utils.Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    cluster.add_node(**node)
    yield cluster.address
    cluster.shutdown()


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As tasks of Ray have: sums of several threads differ in their last bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def on_ray(address: str, folder: Path, *flags: str, **options: object) -> subprocess.Popen[str]:
    """`unet-train` in a folder, on the cluster at an address."""
    command = [sys.executable, "-m", "trainer", *arguments("--engine", "ray", *flags, data="data", **options)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), "RAY_ADDRESS": address}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, env=environment, cwd=folder, text=True, **pipes)


def has_saved(out: Path) -> bool:
    """Whether a run that is new has saved an epoch."""
    history, last = out / "history.csv", out / "last.pth"
    return history.exists() and last.stat().st_mtime_ns > history.stat().st_mtime_ns


def process_of(task: str, folder: Path) -> int:
    """Process of a Ray task that works in a folder."""
    (process,) = (
        int(each.parent.name)
        for each in Path("/proc").glob("[0-9]*/cmdline")
        if each.read_bytes().startswith(f"ray::{task}".encode()) and (each.parent / "cwd").readlink() == folder
    )
    return process


@pytest.mark.usefixtures("one_thread")
def test_folds_on_ray_are_those_of_this_machine_also_when_they_are_interrupted(
    address: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    run = {"folds": 2, "fold": "all", "epochs": 15}
    second, log = Path("ray/fold-2"), Path("ray/fold-2/log.txt")
    with on_ray(address, tmp_path, out="ray", **run) as program:
        until(lambda: has_saved(second))
        os.kill(process_of("ray/fold-2", tmp_path), signal.SIGKILL)
        until(lambda: "where an earlier run was interrupted" in log.read_text())
        program.terminate()
        _, errors = program.communicate(timeout=100)
    assert program.returncode == 128 + signal.SIGTERM
    assert errors == (
        "unet-train: stopped by SIGTERM; the same command, without --force, goes on after the last saved epoch\n"
    )
    with on_ray(address, tmp_path, out="ray", **run) as program:
        printed, errors = program.communicate(timeout=250)
    assert program.returncode == 0, errors
    assert log.read_text().count("where an earlier run was interrupted") == 2

    assert train(data="data", out="local", **run) == 0
    assert printed.splitlines()[-1] == capsys.readouterr().out.splitlines()[-1]
    assert printed.splitlines()[-1].startswith("folds     score ")
    for fold in ("fold-1", "fold-2"):
        assert_same_run(Path("ray") / fold, Path("local") / fold)
        files = contents(Path("local") / fold).keys() | {"log.txt", "progress.json"}
        assert contents(Path("ray") / fold).keys() == files
    assert Path("ray/folds.csv").read_text() == Path("local/folds.csv").read_text()


@pytest.mark.usefixtures("one_thread")
def test_a_curve_on_ray_is_that_of_this_machine(
    address: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with on_ray(address, tmp_path, "--curve", out="ray", val_fraction=0.5) as program:
        printed, errors = program.communicate(timeout=250)
    assert program.returncode == 0, errors
    assert train("--curve", data="data", out="local", val_fraction=0.5) == 0
    assert printed.splitlines()[-1] == capsys.readouterr().out.splitlines()[-1]
    ray, local = contents(Path("ray")), contents(Path("local"))
    assert ray.keys() == local.keys() | {"log.txt"}
    assert (ray["curve.csv"], ray["curve.png"]) == (local["curve.csv"], local["curve.png"])
    curves = [json.loads(files["report.json"])["curve"] for files in (ray, local)]
    assert curves[0] == curves[1]
    assert [point["images"] for point in curves[0]["points"]] == [1, 2]


def test_errors_name_the_fold_or_the_flag(address: str, data: Path, tmp_path: Path) -> None:
    folds = {"folds": 2, "fold": "all"}
    (tmp_path / "out" / "fold-2").mkdir(parents=True)
    (tmp_path / "out" / "fold-2" / "best_model.pth").write_bytes(b"of another run")
    failing, without_gpu = (
        on_ray(address, tmp_path, out="out", **folds),
        on_ray(address, tmp_path, out="gpu", device="cuda", **folds),
    )
    printed, errors = failing.communicate(timeout=250)
    assert failing.returncode == 2
    assert "          out/fold-1: score 0." in printed
    assert errors.splitlines()[-1].startswith(
        "unet-train: error: out/fold-2 failed: out/fold-2/best_model.pth is there"
    )
    _, errors = without_gpu.communicate(timeout=250)
    assert without_gpu.returncode == 2
    said = "unet-train: error: --device cuda: expected a Ray cluster with a GPU, found none\n"
    assert errors.endswith(said)
