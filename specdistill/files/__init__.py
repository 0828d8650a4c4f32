"""Files that a crash never leaves half written: atomic writes, parquet rows, and the settings of a run."""
