"""Parts that tests and benchmarks are made of: servers that misbehave on purpose."""
