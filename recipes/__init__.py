"""Training recipes, run from a checkout: `python -m recipes.mnist --help`."""
