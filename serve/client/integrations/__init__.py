"""Reward functions for trainers, one file a trainer."""
