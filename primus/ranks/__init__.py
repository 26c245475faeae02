"""What is known of a node's ranks from outside: how they end, and whether they get on."""
