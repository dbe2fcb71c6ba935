"""Versions of models in MLflow: aliases, promotion, lineage, and how a model is named."""
