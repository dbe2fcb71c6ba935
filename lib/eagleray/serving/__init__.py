"""The prediction service without its web server; it knows neither Ray nor HTTP.

`service.py` is the entry: it composes the other modules, and a request passes through them in this
order: `admission` (key, quota, bytes), `routing` (which version), `model_pool` (the version in
memory), `pipeline` and `workers` (queue, decode, predict), `responses` or `protocol` (result).
`serve/` puts Ray Serve, HTTP and gRPC around it.
"""
