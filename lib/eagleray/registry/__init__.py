"""The registry of model versions in MLflow: aliases, promotion, lineage, references."""
