"""How the embedded demo model was made, so that anybody can make it again.

Start at `train`. The result, `seeds/demo`, is a toy that tells whole, fitting answers from
shuffled, cut, unrelated or empty ones; it is no reward model. Nothing else in `rm_core` imports
this package.
"""
