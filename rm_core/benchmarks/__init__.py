"""Benchmarks of reward models: functions from rewards to results, without a model.

Each benchmark is one module. Start with `rm_core.benchmarks.base`, then read `rewardbench`.
"""
