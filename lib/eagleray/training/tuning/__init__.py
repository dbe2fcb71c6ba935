"""Tuning: many trainings under one budget, and the best of them."""
