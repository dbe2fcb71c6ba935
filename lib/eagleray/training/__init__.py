"""From labelled images to the weights of a model, on many workers."""
