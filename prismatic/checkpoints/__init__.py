"""Folders of runs, and the checkpoints in them."""
