"""Uploads to S3 in small parts: `python small_parts.py BYTES PROGRAM ARGUMENTS ...`.

A part has 50 MB, and smaller files are not uploaded in parts, which takes too much for a test that
stops an upload between two parts. S3 allows 5 MiB.
"""

from __future__ import annotations

import runpy
import sys

import s3fs.core

if __name__ == "__main__":
    num_bytes = int(sys.argv[1])
    s3fs.core.calculate_chunksize = lambda *_, **__: num_bytes
    del sys.argv[:2]
    runpy.run_path(sys.argv[0], run_name="__main__")
