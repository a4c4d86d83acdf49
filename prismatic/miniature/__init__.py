"""A small world: procedurally drawn scenes with language, written in the formats of the real data sets."""
