"""The programs that people submit. Each reads: parse, build, run, report."""
