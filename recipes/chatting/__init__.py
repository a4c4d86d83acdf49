"""Talking with a model in the terminal, and answering files of questions."""
