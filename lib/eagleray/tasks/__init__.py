"""What a model predicts: one class for each task, from targets to predictions."""
