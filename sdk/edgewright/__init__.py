"""Takes a trained PyTorch model to a verified, signed artifact."""
