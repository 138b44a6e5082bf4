"""What the package costs, next to its peers: each module prints its own tables."""
