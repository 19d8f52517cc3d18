"""`--data isbi2012`: the training slices of the ISBI 2012 challenge, downloaded once and checked.

30 slices of a fly's nerve cord by electron microscopy (Cardona et al. 2010, Arganda-Carreras et al. 2015), 512 x 512
grey; label 255 is the inside of a cell, 0 membrane. Free for research.
"""

from pathlib import Path

import pooch

REGISTRY = Path(__file__).with_name("isbi2012.txt")
_REMOTE = {"Training_Images": "image", "Training_Labels": "label"}


class DownloadError(ValueError):
    """The data set cannot be had. Says how to get it by hand."""


def isbi2012(base_url: str) -> Path:
    """The data folder, in the user's cache; what is there with the right checksum is not downloaded again."""
    cache = pooch.create(path=pooch.os_cache("unet-service") / "isbi2012", base_url="", registry=None)
    cache.load_registry(REGISTRY)
    for name in cache.registry:
        folder, file = name.split("/")
        cache.urls[name] = f"{base_url.rstrip('/')}/{_REMOTE[folder]}/{int(Path(file).stem)}.png"
    pooch.get_logger().setLevel("WARNING")
    try:
        for name in cache.registry:
            cache.fetch(name)
    except (OSError, ValueError) as error:  # requests' errors are OSErrors; a wrong checksum is a ValueError
        raise DownloadError(
            f"isbi2012 cannot be downloaded from {base_url} ({error}). By hand: put image/N.png and label/N.png from "
            f"there, N = 0 to 29, into {cache.abspath} as Training_Images/NN.png and Training_Labels/NN.png"
        ) from error
    return Path(cache.abspath)
