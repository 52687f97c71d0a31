"""What every room stands on: files, workers, threads, progress, geometry.

In: nothing of this package but its errors. Out: functions that know no dataset, no method and no
score. May import: `errors`.
"""
