"""Soundness: whether an artifact is what its float model says, layer by layer and file by file."""
