"""A task in our hands: freeze, read, call remotely, spawn."""
