"""Methods: controls, baselines and models, imported on first use.

In: cells; with labels only to fit. Out: scores of every pair. May import: all rooms up to
`evaluate`.
"""

from __future__ import annotations

import difflib
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points

from gpattern_bench.errors import MethodError, UnknownMethodError
from gpattern_bench.methods.base import Method

__all__ = ["METHODS", "PLUGINS", "get_method", "plugins"]

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


PLUGINS = "gpattern_bench.methods"
"""Group of entry points by which other packages name their methods."""


def plugins() -> dict[str, EntryPoint]:
    """Find the methods of other installed packages: name -> entry point; nothing is imported.

    A package names them in its ``pyproject.toml``::

        [project.entry-points."gpattern_bench.methods"]
        my_method = "my_package.my_module:MyMethod"

    A name of :data:`METHODS` always means the one of this package.
    """
    return {found.name: found for found in entry_points(group=PLUGINS) if found.name not in METHODS}


def get_method(name: str) -> Method:
    """Make a method of this package, or of another one (:func:`plugins`); not yet fitted.

    Raises
    ------
    UnknownMethodError
        The message lists the nearest names and all names.
    MethodError
        The method of another package cannot be imported, or has another name than its entry point.

    Examples
    --------
    >>> get_method("sprawl").about.label
    'SPRAWL'
    """
    if name in METHODS:
        module, _, attribute = METHODS[name].partition(":")
        method: Method = getattr(import_module(module), attribute)()
        return method
    found = plugins()
    if name not in found:
        known = [*METHODS, *found]
        near = difflib.get_close_matches(name.lower(), known, n=2, cutoff=0.5)
        hint = f" Did you mean {' or '.join(near)}?" if near else ""
        raise UnknownMethodError(f"no method named {name!r}.{hint} Known: {', '.join(known)}.")
    return _loaded(found[name])


def _loaded(entry: EntryPoint) -> Method:
    """Make the method of an entry point."""
    where = f"{entry.value} ({entry.dist.name})" if entry.dist else entry.value
    try:
        method: Method = entry.load()()
        called = method.about.name
    except Exception as error:  # code of anyone's
        raise MethodError(
            f"{entry.name}, which {where} provides, cannot be made: {error!r}; expected a class "
            "with `about` and fit, save, load and predict (gpattern_bench.methods.base.Method)"
        ) from error
    if called != entry.name:
        raise MethodError(
            f"{entry.name}, which {where} provides, says about.name = {called!r}; expected "
            f"{entry.name!r}"
        )
    return method
