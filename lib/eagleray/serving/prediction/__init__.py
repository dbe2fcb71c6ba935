"""The way of a request: fetch, decode, queue, predict, respond."""
