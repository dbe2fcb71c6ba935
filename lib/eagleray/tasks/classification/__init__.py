"""Tasks that give an image labels."""
