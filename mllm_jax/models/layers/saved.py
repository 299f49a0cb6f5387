"""Names of what a block computes, by which remat policies say what is kept for the backward pass."""

QUERY, KEY, VALUE = "query", "key", "value"
"""Heads as attention reads them."""

ATTENTION = "attention"
"""What attention reads, before its output projection, and what its backward pass needs of the softmax."""
