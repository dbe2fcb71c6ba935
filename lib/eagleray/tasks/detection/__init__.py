"""Detection, and what all tasks share that find objects."""
