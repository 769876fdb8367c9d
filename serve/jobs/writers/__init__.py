"""Writers of OUTPUT: JSON lines, plain or compressed, and Parquet.

Start reading at `serve.jobs.writers.base`.
"""
