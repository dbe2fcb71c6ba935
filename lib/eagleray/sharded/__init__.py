"""The durable job: inputs listed in shards, a plan claimed once, shards run until done, a commit.

Prediction and packing are two kinds of work on it. A kind of work brings its `Work` (what decides
the results), a function that runs shards, and a function that makes the output's files.
"""
