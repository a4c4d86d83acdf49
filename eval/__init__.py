"""Evaluation of vision-language models."""
