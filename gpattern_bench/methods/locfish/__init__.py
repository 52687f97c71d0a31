"""locFISH: the features of big-fish and what is learnt on them."""
