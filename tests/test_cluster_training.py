"""Training on several nodes: `torchrun` loses a worker, or a node, and goes on."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from trainer_runs import assert_same_run, contents, history

pytestmark = pytest.mark.cluster

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
