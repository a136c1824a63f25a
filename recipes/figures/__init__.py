"""The AdderNet paper's figures from your own runs: `python -m recipes.figures --help`."""
