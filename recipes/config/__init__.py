"""Settings of each recipe, and how a command line, a file and presets make them up."""
