"""What every other package builds on: errors, settings, types, the machine, the Ray session."""
