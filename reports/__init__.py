"""Reports: the table in, files out."""
