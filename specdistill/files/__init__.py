"""Files that a crash never leaves half written: atomic writes, locks, rows in parquet files, the settings of a run."""
