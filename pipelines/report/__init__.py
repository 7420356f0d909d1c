"""The report: one self-contained HTML page on what the store holds."""
