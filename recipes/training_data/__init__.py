"""Training data by name: what there is, getting it ready, and looking at it as the model will see it."""
