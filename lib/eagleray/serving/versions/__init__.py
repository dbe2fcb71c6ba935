"""Which version serves a request, and which versions are in memory."""
