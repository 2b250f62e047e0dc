"""What one chapter alone needs, one module a chapter: numbers to record, tables, claims."""
