"""A folder of annotated images in, `best_model.pth` out."""
