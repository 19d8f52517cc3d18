"""The U-Net: its network, its checkpoint file, its pixels, its predictions. Imports neither `trainer` nor `service`."""

from importlib.metadata import version

from unet.network import NetworkConfig, UNet
from unet.predictor import Predictor

__version__ = version("unet-service")

__all__ = ["NetworkConfig", "Predictor", "UNet", "__version__"]
