"""`--data isbi2012`, from a server on loopback."""

import hashlib
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from conftest import png

from trainer.__main__ import main
from trainer.data import download, read_folder


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def site(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder and the URL that serves it."""
    handler = partial(Quiet, directory=str(tmp_path / "site"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield tmp_path / "site", f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture
def published(site: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two slices on the server, a registry of them, and an empty cache."""
    folder, url = site
    rng = np.random.default_rng(0)
    lines = ["# a comment"]
    for kind, name in (("image", "Training_Images"), ("label", "Training_Labels")):
        (folder / kind).mkdir(parents=True)
        for i in range(2):
            data = png(rng.integers(0, 2, (32, 32), dtype=np.uint8) * 255)
            (folder / kind / f"{i}.png").write_bytes(data)
            lines.append(f"{name}/{i:02d}.png {hashlib.sha256(data).hexdigest()}")
    (tmp_path / "registry.txt").write_text("\n".join(lines))
    monkeypatch.setattr(download, "REGISTRY", tmp_path / "registry.txt")
    monkeypatch.setattr(download, "URL", url)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return folder


def test_the_data_set_is_downloaded_once(published: Path) -> None:
    data = read_folder(download.isbi2012())
    assert [sample.name for sample in data.samples] == ["00", "01"]
    for path in published.rglob("*.png"):
        path.unlink()
    assert read_folder(download.isbi2012()).fingerprint == data.fingerprint


def test_a_file_with_a_wrong_checksum_is_refused(published: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (published / "label" / "1.png").write_bytes(b"something else")
    assert main(["--data", "isbi2012", "--out", str(published / "out")]) == 2
    assert "does not match the known hash" in capsys.readouterr().err


def test_a_failed_download_says_how_to_do_it_by_hand(
    published: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(download, "URL", "http://127.0.0.1:1")
    assert main(["--data", "isbi2012", "--out", str(published / "out")]) == 2
    printed = capsys.readouterr().err
    assert "By hand: put image/N.png" in printed
    assert "Traceback" not in printed


def test_the_registry_lists_thirty_slices_and_their_labels() -> None:
    lines = [line for line in download.REGISTRY.read_text().splitlines() if not line.startswith("#")]
    assert len(lines) == 60
    assert all(len(line.split()[1]) == 64 for line in lines)


@pytest.mark.realdata
def test_the_registry_has_the_checksums_of_the_real_slices(real_data: Path) -> None:
    known = dict(line.split() for line in download.REGISTRY.read_text().splitlines() if not line.startswith("#"))
    for path in (real_data / "isbi2012").glob("*/*.png"):
        assert known[f"{path.parent.name}/{path.name}"] == hashlib.sha256(path.read_bytes()).hexdigest()
