"""Gives registered classifiers an outlier score: how unlike its training images an image is."""
