"""What a `Storage` reads: local files, remote objects, and blocks of these kept in memory or on a disk."""
