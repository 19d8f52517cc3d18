"""`--tensorboard`, read by TensorBoard itself."""

import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from trainer_runs import history, train

from trainer.tensorboard import TensorBoard


def test_it_shows_the_history(data: Path, tmp_path: Path) -> None:
    assert train("--tensorboard", epochs=2, data=data, out=tmp_path) == 0
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    for name in ("loss", "score", "lr"):
        shown = {event.step: event.value for event in events.Scalars(name)}
        assert shown == {int(row["epoch"]): pytest.approx(float(row[name]), rel=1e-4) for row in history(tmp_path)}


def test_a_repeated_epoch_is_shown_once(tmp_path: Path) -> None:
    for epochs, loss in ((range(1, 5), 0.5), (range(3, 4), 0.25)):  # resumed after the second epoch
        board = TensorBoard(tmp_path, first_epoch=epochs[0])
        for epoch in epochs:
            board.add({"epoch": epoch, "loss": loss})
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 0.5), (2, 0.5), (3, 0.25)]


def test_a_missing_extra_is_named(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    assert train("--tensorboard", data=data, out=tmp_path) == 2
    assert "pip install '.[tensorboard]'" in capsys.readouterr().err
