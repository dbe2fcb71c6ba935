"""The command line: commands, options generated from specifications, the terminal."""
