"""The U-Net: network, checkpoint file, pixels, prediction. Imports neither `trainer` nor `service`.

`Predictor`, `UNet` and `NetworkConfig` are imported when they are first asked for: `import unet` loads no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from unet.engines import process

if TYPE_CHECKING:
    from unet.network import NetworkConfig, UNet
    from unet.predictor import Predictor

__version__ = "0.1.0"

__all__ = ["NetworkConfig", "Predictor", "UNet", "__version__", "process"]

_LAZY = {"NetworkConfig": "unet.network", "Predictor": "unet.predictor", "UNet": "unet.network"}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'unet' has no attribute {name!r}")
