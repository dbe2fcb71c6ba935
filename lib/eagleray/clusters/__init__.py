"""Clusters that commands are submitted to from outside: addresses, profiles, submitted jobs."""
