"""Many runs of one experiment: how each point of a sweep came out, and which is best."""
