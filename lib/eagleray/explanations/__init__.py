"""Explains what classifiers predict for a set of images, on one page."""
