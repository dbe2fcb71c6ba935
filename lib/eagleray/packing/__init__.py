"""Many small files into few large ones, with a list of what failed and a manifest."""
