"""Settings of OpenMP and malloc, in programs of their own."""

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

def infer(_):
    torch.set_num_threads(1)
    predictor.mask(image)

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

found = []
with ThreadPoolExecutor(2) as threads:
    for _ in range(4):
        before = faults()
        list(threads.map(infer, range(2)))
        found.append(faults() - before)
print(min(found))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc")
@pytest.mark.slow
def test_threads_keep_the_memory_of_a_forward_pass() -> None:
    """Memory from the system costs thousands of page faults for each image."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 2000


@pytest.mark.skipif(sys.platform != "linux", reason="libgomp")
@pytest.mark.slow
def test_openmp_threads_spin_briefly_unless_the_environment_says_otherwise() -> None:
    def settings(**environment: str) -> str:
        environment |= {"OMP_DISPLAY_ENV": "VERBOSE"}
        program = [sys.executable, "-c", "from unet import UNet"]
        return subprocess.run(program, capture_output=True, text=True, env=environment).stderr

    default = settings()
    assert "OMP_WAIT_POLICY = 'PASSIVE'" in default
    assert "GOMP_SPINCOUNT = '3000'" in default
    assert "GOMP_SPINCOUNT = '7'" in settings(GOMP_SPINCOUNT="7")


def test_package_is_imported_without_torch() -> None:
    program = "import sys, unet.engines; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)
