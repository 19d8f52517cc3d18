"""The history of a run for TensorBoard (optional extra):  tensorboard --logdir OUT/tensorboard"""

from collections.abc import Mapping
from pathlib import Path

from unet.errors import UserError


class TensorBoard:
    """Writer of the rows of history.csv as scalars. Raises UserError if the extra is not installed."""

    def __init__(self, out: Path, first_epoch: int) -> None:
        """Events of `first_epoch` and later, left by an interrupted run, are hidden."""
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ModuleNotFoundError as error:
            raise UserError(
                f"--tensorboard: {error.name} is not installed; expected the extra: "
                "pip install '.[tensorboard]', in the clone"
            ) from error
        self._writer = SummaryWriter(str(out / "tensorboard"), purge_step=first_epoch)

    def add(self, row: Mapping[str, float]) -> None:
        """Write one row of the history, at its epoch."""
        for name, value in row.items():
            self._writer.add_scalar(name, value, int(row["epoch"]))
        self._writer.flush()
