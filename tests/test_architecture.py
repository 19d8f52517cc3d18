"""The arrows between the packages: trainer -> unet <- service, and no others."""

import ast
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ALLOWED = {"unet": {"unet"}, "trainer": {"trainer", "unet"}, "service": {"service", "unet"}}


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {name.name.partition(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add((node.module or "").partition(".")[0])
    return found & set(ALLOWED)


@pytest.mark.parametrize("package", ALLOWED)
def test_a_package_imports_only_what_it_may(package: str) -> None:
    files = list((ROOT / package).rglob("*.py"))
    assert files
    for path in files:
        assert imports(path) <= ALLOWED[package], path


def test_the_programs_are_there() -> None:
    programs = {each.name: each.load() for each in entry_points(group="console_scripts", module="trainer.__main__")}
    programs |= {each.name: each.load() for each in entry_points(group="console_scripts", module="service.__main__")}
    assert programs.keys() == {"unet-train", "unet-serve"}
    assert all(map(callable, programs.values()))


@pytest.mark.parametrize(
    ("module", "foreign"),
    [
        ("unet", {"fastapi", "uvicorn", "pydantic", "trainer", "service"}),
        ("trainer.run", {"fastapi", "uvicorn", "starlette", "service"}),
        ("service.app", {"trainer", "skimage", "scipy", "matplotlib", "pooch"}),
    ],
)
def test_each_image_needs_only_its_own_dependencies(module: str, foreign: set[str]) -> None:
    code = f"import sys, {module}; print(*sorted({foreign!r} & set(sys.modules)))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert loaded.split() == []
