"""Measures models on labelled images: metrics, confidence intervals, slices, KPIs, and a page."""
