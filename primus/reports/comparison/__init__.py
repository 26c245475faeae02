"""Runs side by side: which they are, what differs, and what the noise allows to say of it."""
