"""Training data: image and label pairs, their checks, and augmented crops."""

from trainer.data.augment import Augmentation
from trainer.data.crops import Batch, Batches
from trainer.data.dataset import DataError, DataSet, Sample, read_folder
from trainer.data.pairs import IMAGES, LABELS
from trainer.data.split import SplitKind, split, split_fold

__all__ = [
    "IMAGES",
    "LABELS",
    "Augmentation",
    "Batch",
    "Batches",
    "DataError",
    "DataSet",
    "Sample",
    "SplitKind",
    "read_folder",
    "split",
    "split_fold",
]
