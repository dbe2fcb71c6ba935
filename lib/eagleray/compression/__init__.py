"""Makes smaller and faster versions of registered models."""
