"""Files that a crash never leaves half written: atomic writes, rows in parquet files, the settings of a run."""
