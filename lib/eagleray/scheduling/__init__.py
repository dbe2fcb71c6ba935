"""Submitted jobs: their records, leases, logs and queue, and the process that runs one."""
