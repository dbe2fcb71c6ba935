"""Reads label formats of detection and segmentation into one form, and writes them."""
