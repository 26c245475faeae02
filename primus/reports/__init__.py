"""The report of a run: what was read, what it adds up to, whether it can be trusted, one page."""
