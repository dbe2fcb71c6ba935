"""A client of the service, synchronous and asynchronous."""

from eagleray.client.client import AsyncClient, Client, RequestRefusedError

__all__ = ["AsyncClient", "Client", "RequestRefusedError"]
