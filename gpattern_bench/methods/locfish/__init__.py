"""locFISH: the features of big-fish, and a forest or clusters on them."""
