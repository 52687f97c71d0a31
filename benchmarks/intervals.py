"""How often the 95 % intervals hold the true value, and equal methods tie, in simulated studies.

The studies are those of tests/evaluate/test_bootstrap.py, in larger number and at several sizes.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tabulate import tabulate
from timing import parsed, report

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "evaluate"))

import test_bootstrap as study

from gpattern_bench.evaluate.bootstrap import interval


def main() -> None:
    """Run the studies; the last line printed is JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=800, help="studies at each size")
    parser.add_argument("--clusters", type=int, nargs="+", default=[20, 24, 40])
    options = parsed(parser)
    found = []
    for clusters in options.clusters:
        studies = study.simulated(options.runs, clusters)
        found += [
            {
                "clusters": clusters,
                "metric": metric,
                "covered": study.coverage(studies, metric, interval),
                "percentiles": study.coverage(studies, metric, study.percentiles),
                "equal_tied": study.shares_tied(studies, metric, "a", "equal"),
                "better_tied": study.shares_tied(studies, metric, "a", "better"),
            }
            for metric in study.COVERED
        ]
    print(tabulate(found, headers="keys", tablefmt="github", floatfmt=".3f"))
    shares = [{k: v if k == "metric" else round(float(v), 4) for k, v in f.items()} for f in found]
    report({"runs": options.runs, "studies": shares}, options.record)


if __name__ == "__main__":
    main()
