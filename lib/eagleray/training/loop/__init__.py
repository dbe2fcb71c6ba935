"""The training loop of a worker: from images to checkpoints."""
