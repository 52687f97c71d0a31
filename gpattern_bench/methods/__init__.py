"""Methods: controls, baselines and models, imported on first use.

In: cells; with labels only to fit. Out: scores of every pair. May import: all rooms up to
`evaluate`.
"""

from __future__ import annotations

import difflib
from importlib import import_module

from gpattern_bench.errors import UnknownMethodError
from gpattern_bench.methods.base import Method

__all__ = ["METHODS", "get_method"]

METHODS = {
    "prevalence": "gpattern_bench.methods.controls:Prevalence",
    "gene_prior": "gpattern_bench.methods.controls:GenePrior",
    "molecule_count": "gpattern_bench.methods.controls:MoleculeCount",
    "oracle": "gpattern_bench.methods.controls:Oracle",
    "bento": "gpattern_bench.methods.bento.method:Bento",
    "boosted": "gpattern_bench.methods.boosted.method:Boosted",
    "boosted_context": "gpattern_bench.methods.boosted.method:BoostedContext",
    "boosted_gene": "gpattern_bench.methods.boosted.method:BoostedGene",
    "ella": "gpattern_bench.methods.ella.method:Ella",
    "ella_robust": "gpattern_bench.methods.ella.method:EllaRobust",
    "coordinate_mlp": "gpattern_bench.methods.gpsnet.method:CoordinateMLP",
    "gpsnet": "gpattern_bench.methods.gpsnet.method:GPSNetMethod",
    "gpsnet_context": "gpattern_bench.methods.gpsnet.method:GPSNetContext",
    "gpsnet_coordinates": "gpattern_bench.methods.gpsnet.method:GPSNetCoordinates",
    "gpsnet_ensemble": "gpattern_bench.methods.gpsnet.method:GPSNetEnsemble",
    "gpsnet_outlines": "gpattern_bench.methods.gpsnet.method:GPSNetOutlines",
    "locfish": "gpattern_bench.methods.locfish.method:Locfish",
    "locfish_2018": "gpattern_bench.methods.locfish.method:Locfish2018",
    "locfish_unsupervised": "gpattern_bench.methods.locfish.method:LocfishUnsupervised",
    "sprawl": "gpattern_bench.methods.sprawl.method:Sprawl",
}
"""Name -> ``module:class`` of every method in the package."""


def get_method(name: str) -> Method:
    """Make a method, not yet fitted.

    Raises
    ------
    UnknownMethodError
        The message lists the nearest names and all names.

    Examples
    --------
    >>> get_method("sprawl").about.label
    'SPRAWL'
    """
    if name not in METHODS:
        near = difflib.get_close_matches(name.lower(), METHODS, n=2, cutoff=0.5)
        hint = f" Did you mean {' or '.join(near)}?" if near else ""
        raise UnknownMethodError(f"no method named {name!r}.{hint} Known: {', '.join(METHODS)}.")
    module, _, attribute = METHODS[name].partition(":")
    method: Method = getattr(import_module(module), attribute)()
    return method
