"""The service: `best_model.pth` behind HTTP."""
