"""The board: submissions, their scores, and the leaderboard as Markdown, JSON and one page.

In: a folder of submissions and the paper's reported rows. Out: a pure function of them, byte for
byte the same on every machine. May import: all rooms up to `runs`.
"""
