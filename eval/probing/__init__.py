"""Patch probing: what a vision backbone knows about what is where, by semantic segmentation of its patches."""
