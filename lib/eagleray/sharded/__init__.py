"""The durable job: a manifest of inputs cut into shards, a plan that is claimed once, a commit."""
