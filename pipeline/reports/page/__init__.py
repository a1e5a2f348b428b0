"""The report as one HTML page, made from records, rows and reports alone: no teacher is loaded."""
