"""What `unet.process` does for threads that compute."""

import subprocess
import sys

import pytest

PROGRAM = """
from concurrent.futures import ThreadPoolExecutor
from unet import NetworkConfig, Predictor
from unet.pixels import Preprocessing
import numpy as np, resource, torch

predictor = Predictor(NetworkConfig(base_channels=16).build(), Preprocessing())
image = np.zeros((512, 512), np.uint8)

def work(_):
    torch.set_num_threads(1)
    predictor.mask(image)

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

found = []
with ThreadPoolExecutor(2) as streams:
    for _ in range(6):
        before = faults()
        list(streams.map(work, range(2)))
        found.append(faults() - before)
print(min(found))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc")
def test_threads_keep_the_memory_of_a_forward_pass() -> None:
    """And do not get it from the system again, page by page: thousands of them for each image."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 2000


@pytest.mark.skipif(sys.platform != "linux", reason="libgomp")
def test_openmp_knows_how_threads_wait_and_a_user_knows_better() -> None:
    def display(**of_user: str) -> str:
        environment = {"OMP_DISPLAY_ENV": "VERBOSE", **of_user}
        done = subprocess.run([sys.executable, "-c", "import unet"], capture_output=True, text=True, env=environment)
        return done.stderr

    assert "OMP_WAIT_POLICY = 'PASSIVE'" in display()
    assert "GOMP_SPINCOUNT = '3000'" in display()
    assert "GOMP_SPINCOUNT = '7'" in display(GOMP_SPINCOUNT="7")
