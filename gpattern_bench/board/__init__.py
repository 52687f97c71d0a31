"""The board: submissions, their scores, and the leaderboard as Markdown, JSON and one page.

In: a folder of submissions and the paper's reported rows. Out: the same bytes on every machine, a
pure function of what came in. May import: all rooms up to `runs`.
"""
