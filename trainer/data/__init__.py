"""Training data: pairs of images and labels, their checks, and augmented crops."""

from trainer.data.crops import Batch, Batches
from trainer.data.dataset import DataError, DataSet, Sample, read_folder

__all__ = ["Batch", "Batches", "DataError", "DataSet", "Sample", "read_folder"]
