"""The command line: what people type, and how it answers."""
