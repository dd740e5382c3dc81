"""Reading and writing models: one file a format, and guards that refuse a file before any library touches it."""
