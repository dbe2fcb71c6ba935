"""Kills, races, storage faults and broken inputs that the product must survive."""
