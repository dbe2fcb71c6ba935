"""Fixtures of the tests of clusters."""

from tests.support.ray_head import head

__all__ = ["head"]
