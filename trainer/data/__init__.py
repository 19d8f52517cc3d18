"""Training data: pairs of images and labels, their checks, and augmented crops.

pairs.py                 which label belongs to which image, by layout of the folder
labels.py                label values -> class indices, and their checks
dataset.py               reads a folder and lists everything wrong with it
split.py                 training and validation
crops.py, augment.py     batches of crops, and the random changes that they get
sample.py, download.py   data sets that come with the program
"""

from trainer.data.augment import Augmentation
from trainer.data.crops import Batch, Batches
from trainer.data.dataset import DataError, DataSet, Sample, read_folder
from trainer.data.split import split, split_fold

__all__ = ["Augmentation", "Batch", "Batches", "DataError", "DataSet", "Sample", "read_folder", "split", "split_fold"]
