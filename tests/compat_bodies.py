"""A short and a longer conversation as texts for the demo model, and their rewards in tests."""

from fakes import conversation

TEXT = "<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n4<|im_end|>\n"
LONGER = TEXT.replace("4<", "4 4 4 4<")
MESSAGES = conversation("4")
REWARD, LONGER_REWARD = 1.25, -3.1415927410125732
