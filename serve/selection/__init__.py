"""`skyreward select`: best answers and preference pairs from the output of `skyreward score`."""
