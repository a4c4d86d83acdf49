"""`python -m prismatic JOB ...` is `prismatic JOB ...`, the command over all recipes."""

import runpy

if __name__ == "__main__":  # by name: the recipes lie on a higher floor
    runpy.run_module("recipes", run_name="__main__", alter_sys=True)
