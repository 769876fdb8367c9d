"""Where rows come from: files of JSON lines, Parquet, Arrow, folders, globs and the hub.

Start reading at `serve.jobs.inputs.source`; `opening` decides what an INPUT names.
"""
