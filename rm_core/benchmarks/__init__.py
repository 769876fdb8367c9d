"""Benchmarks of reward models: rows in, figures out; no model inside.

One module each. Start reading at `rm_core.benchmarks.base`, then at `rewardbench`.
"""
