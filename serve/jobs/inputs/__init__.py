"""Inputs of jobs: files of JSON lines, Parquet and Arrow, folders, globs and the hub.

Start reading at `serve.jobs.inputs.source`, which finds the files of INPUT.
"""
