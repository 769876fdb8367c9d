"""Reward functions for trainers, one module per trainer."""
