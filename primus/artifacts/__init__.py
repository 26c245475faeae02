"""Typed files between stages: versioned, sorted, atomic, hashed."""
