"""From what a model says to scores and their intervals."""
