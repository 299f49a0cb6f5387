"""What data hold, counted in memory that does not grow with them: lengths, sizes, copies, languages, rows."""
