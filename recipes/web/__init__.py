"""The local web page: one file a tab."""
