"""Numbers -> terminal tables, JSON, one self-contained HTML page. Prints, never computes."""
