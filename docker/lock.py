"""Writes the lock files of the images from pyproject.toml:  python3.11 docker/lock.py

Asks pip (22.2 or newer) for the newest allowed versions on this platform and installs nothing. To hold a version back,
set an upper bound in pyproject.toml. Where pip is configured to prefer a CPU build of torch:
PIP_CONFIG_FILE=/dev/null PIP_FIND_LINKS= python3.11 docker/lock.py
"""

import json
import subprocess
import sys
import tomllib
from pathlib import Path

HERE = Path(__file__).parent
PYTHON = (3, 11)  # of the images
CUDA = ("nvidia-", "cuda-", "triton")
"""Prefixes of packages that only CUDA builds of torch need: constraints, so that CPU images do not install them."""


def main() -> None:
    if sys.version_info[:2] != PYTHON:
        sys.exit(f"expected Python {'.'.join(map(str, PYTHON))}, as in the images; found {sys.version.split()[0]}")
    project = tomllib.loads((HERE.parent / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    base = resolve(project["dependencies"])
    if not any(pin.startswith(CUDA) for pin in base):
        sys.exit("pip found a CPU build of torch; expected one with CUDA: switch other indexes and find-links off")
    write("requirements-base.txt", "the dependencies", {pin for pin in base if not pin.startswith(CUDA)})
    write("constraints-cuda.txt", "the dependencies", {pin for pin in base if pin.startswith(CUDA)})
    write("requirements-trainer.txt", "the extra 'train'", resolve(sorted(base) + extras["train"]) - base)
    write("requirements-service.txt", "the extra 'serve'", resolve(sorted(base) + extras["serve"]) - base)


def resolve(requirements: list[str]) -> set[str]:
    """Pins, `name==version`, of everything that pip would install for these requirements."""
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet", "--report", "-"]
    answer = subprocess.run([*command, *requirements], check=True, stdout=subprocess.PIPE)
    packages = [item["metadata"] for item in json.loads(answer.stdout)["install"]]
    # without the local part: 2.13.0 fits every build, such as 2.13.0+cu130
    return {f"{package['name'].lower()}=={package['version'].partition('+')[0]}" for package in packages}


def write(name: str, source: str, pins: set[str]) -> None:
    header = f"# Written by docker/lock.py from {source} in pyproject.toml; run it again to renew.\n"
    (HERE / name).write_text(header + "".join(f"{pin}\n" for pin in sorted(pins)))
    print(f"{name}: {len(pins)} packages")


if __name__ == "__main__":
    main()
