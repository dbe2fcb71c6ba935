"""Prediction jobs: images in, a table with one row for each image out."""
