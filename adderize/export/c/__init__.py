"""Networks of integers as C."""
