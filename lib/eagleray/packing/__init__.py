"""Packing jobs: many small image files become a few large ones."""
