"""`python -m recipes JOB ...` is `prismatic JOB ...`."""

from recipes.cli import main

main()
