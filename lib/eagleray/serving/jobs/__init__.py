"""Jobs that callers of the service submit: what they may do, how they run, what is seen of them."""
