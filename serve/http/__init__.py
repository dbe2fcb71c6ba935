"""The service's HTTP interface."""

from eagleray.serve.http.app import build_http

__all__ = ["build_http"]
