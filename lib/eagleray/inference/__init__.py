"""Runs a loaded package on a device: the predictor, its engines and its prefetching."""
