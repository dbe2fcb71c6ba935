"""Training and tuning on many workers: from labelled images to a registered model."""
