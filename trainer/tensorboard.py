"""The history of a run for TensorBoard, an optional extra:  tensorboard --logdir OUT/tensorboard"""

from collections.abc import Mapping
from pathlib import Path

FOLDER = "tensorboard"


class TensorBoard:
    """Writes scalars beside the run's other files. Raises ValueError if the extra is not installed."""

    def __init__(self, out: Path, first_epoch: int) -> None:
        """What an interrupted run wrote of `first_epoch` and later is not shown."""
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ModuleNotFoundError as error:
            raise ValueError(
                f"--tensorboard: {error.name} is not installed; expected the extra: "
                "pip install '.[tensorboard]', in the clone"
            ) from error
        self._writer = SummaryWriter(str(out / FOLDER), purge_step=first_epoch)

    def add(self, row: Mapping[str, float]) -> None:
        """A row of the history."""
        for name, value in row.items():
            if name != "epoch":
                self._writer.add_scalar(name, value, int(row["epoch"]))
        self._writer.flush()
