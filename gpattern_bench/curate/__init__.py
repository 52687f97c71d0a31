"""Source release -> validated Parquet tables."""
