"""What people look at after an evaluation: pages, charts, tables, comparisons."""
