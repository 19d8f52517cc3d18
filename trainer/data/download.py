"""`--data isbi2012`: the 30 training slices of the ISBI 2012 challenge, downloaded once and verified.

Electron micrographs of a fly's nerve cord (Cardona et al. 2010, Arganda-Carreras et al. 2015), 512 x 512 grey; label
255 is the inside of a cell, 0 a membrane. Free for research.
"""

from pathlib import Path

import pooch

from trainer.data.pairs import IMAGES, LABELS
from unet.errors import UserError

URL = "https://raw.githubusercontent.com/zhixuhao/unet/b45af4d458437d8281cc218a07fd4380818ece4a/data/membrane/train"
REGISTRY = Path(__file__).with_name("isbi2012.txt")  # files and their SHA-256


def isbi2012() -> Path:
    """Data folder in the user's cache. Files there with the right checksum are not downloaded again. Raises UserError,
    which says how to get the data set by hand."""
    cache = pooch.create(path=pooch.os_cache("unet-service") / "isbi2012", base_url="", registry=None)
    cache.load_registry(REGISTRY)
    pooch.get_logger().setLevel("WARNING")
    try:
        for name in cache.registry:
            cache.urls[name] = f"{URL}/{'image' if name.startswith(IMAGES) else 'label'}/{int(Path(name).stem)}.png"
            cache.fetch(name)
    except (OSError, ValueError) as error:  # OSError: connection or disk; ValueError: pooch's for a wrong checksum
        raise UserError(
            f"isbi2012 cannot be downloaded from {URL} ({error}). By hand: put image/N.png and label/N.png from "
            f"there, N = 0 to 29, into {cache.abspath} as {IMAGES}/NN.png and {LABELS}/NN.png"
        ) from error
    return Path(cache.abspath)
