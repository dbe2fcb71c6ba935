"""Kills, races, faults and rot: what the batch system must survive, done to it on purpose."""
