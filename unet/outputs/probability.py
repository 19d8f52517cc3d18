"""output=probability: how sure the model is of each pixel."""

from unet.outputs.kind import Kind, as_image

PROBABILITY = Kind(
    name="probability",
    description="8-bit grey, 255 certain; of the foreground, or of each pixel's likeliest class",
    wants="probability",
    encode=as_image,
)
