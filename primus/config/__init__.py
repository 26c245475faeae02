"""What a user may say, what it means, and which stage depends on it. Imports no torch."""
