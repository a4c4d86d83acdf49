"""Recipes: linear scripts that run one job each."""
