"""Streams of packed image-text rows from tar shards and conversation files."""
