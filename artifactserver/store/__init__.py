"""A content-addressed store, and small mutable records that point into it."""
