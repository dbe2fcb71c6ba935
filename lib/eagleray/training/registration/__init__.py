"""What becomes of a trained network: a tested, judged and registered version."""
