"""A list of images in, a table in which every image is accounted for out."""
