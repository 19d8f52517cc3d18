"""The U-Net: its network, its checkpoint file, its pixels, its predictions. Imports neither `trainer` nor `service`."""

from unet import process  # isort: skip  (before torch)
from unet.network import NetworkConfig, UNet
from unet.predictor import Predictor

__version__ = "0.1.0"

__all__ = ["NetworkConfig", "Predictor", "UNet", "__version__", "process"]
