"""Writes the lock files that the images install from, out of pyproject.toml:  python3.11 docker/lock.py

Needs pip 22.2 or newer, and the Python version of the images. Asks pip for today's newest allowed versions and installs
nothing. To keep a version back, bound it in pyproject.toml.
"""

import json
import subprocess
import sys
import tomllib
from pathlib import Path

HERE = Path(__file__).parent
PYTHON = (3, 11)
# torch pins these exactly, and only its CUDA builds need them: listed here, they would go into CPU images too
TORCH_BRINGS = ("nvidia-", "cuda-", "triton")

HEADER = "# Written by docker/lock.py from {source} in pyproject.toml; run it again to renew.\n"


def main() -> None:
    if sys.version_info[:2] != PYTHON:
        sys.exit(f"expected Python {'.'.join(map(str, PYTHON))}, as in the images; found {sys.version.split()[0]}")
    project = tomllib.loads((HERE.parent / "pyproject.toml").read_text())["project"]
    base = resolve(project["dependencies"])
    write("base", "dependencies", base)
    for image, extra in (("trainer", "train"), ("service", "serve")):
        pins = [f"{name}=={version}" for name, version in base.items()]
        both = resolve(pins + project["optional-dependencies"][extra])
        write(image, f"the extra '{extra}'", {name: both[name] for name in both.keys() - base.keys()})


def resolve(requirements: list[str]) -> dict[str, str]:
    """Name -> version of everything that pip would install for these."""
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet", "--report", "-"]
    report = json.loads(subprocess.run([*command, *requirements], check=True, stdout=subprocess.PIPE).stdout)
    found = {item["metadata"]["name"].lower(): item["metadata"]["version"] for item in report["install"]}
    # 2.13.0+cpu is one build of 2.13.0; the pin fits all of them
    return {name: found[name].partition("+")[0] for name in found if not name.startswith(TORCH_BRINGS)}


def write(image: str, source: str, versions: dict[str, str]) -> None:
    path = HERE / f"requirements-{image}.txt"
    path.write_text(HEADER.format(source=source) + "".join(f"{n}=={v}\n" for n, v in sorted(versions.items())))
    print(f"{path}: {len(versions)} packages")


if __name__ == "__main__":
    main()
