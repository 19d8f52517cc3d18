"""output=mask: the class of each pixel."""

from unet.outputs.kind import Kind, as_image

MASK = Kind(
    name="mask",
    description="8-bit, 0 and 255 for a binary model, the class values for several classes",
    wants="mask",
    encode=as_image,
)
