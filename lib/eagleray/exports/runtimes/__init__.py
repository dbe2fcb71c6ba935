"""Code that runs exported models in their runtimes, and is part of each export."""
