"""Tasks that give pixels labels, and tell objects apart by their pixels."""
