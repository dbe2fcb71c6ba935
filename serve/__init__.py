"""The service: Ray Serve around `eagleray.serving`, and its interfaces over HTTP and gRPC."""
