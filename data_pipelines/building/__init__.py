"""Turns sources of any kind into indexed shards of records."""
