"""Jobs that callers of the service submit: which they may, how they run, and what is seen of them."""
