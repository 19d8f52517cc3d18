"""The structure of the code: arrows between packages and rooms, and the line budgets."""

import ast
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ARROWS = {
    "unet": {"unet"},
    "trainer": {"trainer", "unet"},
    "service": {"service", "unet"},
    "batch": {"batch", "unet"},
}
ROOMS = {
    "unet/engines": {"unet.engines", "unet.device", "unet.network"},
    "unet/imaging": {"unet.imaging", "unet.errors"},
    "unet/outputs": {"unet.outputs", "unet.imaging", "unet.errors"},
}
"""What the rooms of the leaf may import of the project."""


def imports(path: Path) -> set[str]:
    """Dotted names of the project's modules that a file imports, `unet.engines.prepare` for `from unet.engines import
    prepare`."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{name.name}" for name in node.names}
    return {name for name in found if name.partition(".")[0] in ARROWS}


def lines(*folders: str) -> int:
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    assert files
    return sum(len(path.read_text().splitlines()) for path in files)


@pytest.mark.parametrize("package", ARROWS)
def test_a_package_imports_itself_and_the_leaf_only(package: str) -> None:
    for path in (ROOT / package).rglob("*.py"):
        assert {name.partition(".")[0] for name in imports(path)} <= ARROWS[package], path


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_of_the_leaf_imports_its_neighbours_only(room: str) -> None:
    for path in (ROOT / room).rglob("*.py"):
        for name in imports(path):
            assert any(f"{name}.".startswith(f"{allowed}.") for allowed in ROOMS[room]), f"{path}: {name}"


def test_engines_are_reached_through_prepare() -> None:
    (used,) = [name for name in imports(ROOT / "unet/predictor.py") if "engines" in name]
    assert used == "unet.engines"
    tree = ast.parse((ROOT / "unet/predictor.py").read_text())
    uses = {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute) and ast.unparse(n.value) == "engines"}
    assert uses == {"prepare"}


@pytest.mark.parametrize(
    ("folders", "budget"),
    [
        # 6,000 for training, serving and limits; 4,000 for files and labels as people have them (layouts, what values
        # mean, TIFF series, other channels) and for few images (objects, suggestions, the curve, the plan); 1,100
        # for answers that people can use (outlines, tables, warnings); 900 for the page's routes, the progress of a
        # training, previews, Accept, prefixes and Muon; 150 for Ray Serve, 150 for Ray Data, and 180 for joining
        # a cluster, folds and curves on Ray, and for held-out images of which few pixels are labelled
        (("unet", "trainer", "service"), 12_330),
        (("service",), 2350),
        (("unet/engines",), 500),
        (("batch",), 1630),  # 150 of them for Ray Data, 210 for large images on Ray and small ones in batches
    ],
)
def test_line_budgets(folders: tuple[str, ...], budget: int) -> None:
    assert lines(*folders) <= budget


def test_no_file_is_long() -> None:
    for path in (path for package in ARROWS for path in (ROOT / package).rglob("*.py")):
        assert len(path.read_text().splitlines()) <= 400, path


def test_the_programs_are_installed() -> None:
    scripts = [each for each in entry_points(group="console_scripts") if each.module.partition(".")[0] in ARROWS]
    programs = {each.name: each.load() for each in scripts}
    assert programs.keys() == {"unet-train", "unet-serve", "unet-segment"}
    assert all(map(callable, programs.values()))


@pytest.mark.parametrize(
    ("module", "foreign"),
    [
        ("unet", {"torch", "numpy", "pydantic"}),
        ("unet.predictor", {"fastapi", "uvicorn", "pydantic", "tifffile", "PIL", "trainer", "service"}),
        ("unet.imaging", {"torch"}),
        ("unet.outputs", {"torch"}),
        ("unet.settings", {"torch"}),
        ("batch.__main__", {"pydantic", "numpy", "ray"}),
        ("batch.settings", {"numpy", "cv2", "torch", "httpx", "tqdm", "ray"}),
        ("batch.run", {"torch", "httpx", "ray"}),
        ("batch.remote", {"torch"}),
        ("trainer.run", {"fastapi", "uvicorn", "starlette", "service", "ray"}),
        ("service.app", {"trainer", "skimage", "scipy", "matplotlib", "pooch", "ray"}),
    ],
)
def test_a_module_loads_only_what_its_image_installs(module: str, foreign: set[str]) -> None:
    code = f"import sys, {module}; print(*sorted({foreign!r} & set(sys.modules)))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert loaded.split() == []
