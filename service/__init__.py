"""`best_model.pth` behind HTTP."""
