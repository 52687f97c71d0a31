"""Where tests find data: a cache of their own, and the real files if they are there."""

from __future__ import annotations

import atexit
import gc
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, settings

# Set at import, so that doctests of the package use this cache too, never the user's. Workers of
# pytest-xdist share that of the process that started them, and make `synthetic` once.
_DATA, _PREFIX = "GPATTERN_BENCH_DATA", "gpattern-bench-tests-"
if "PYTEST_XDIST_WORKER" not in os.environ or _PREFIX not in os.environ.get(_DATA, ""):
    _CACHE = tempfile.mkdtemp(prefix=_PREFIX)
    atexit.register(shutil.rmtree, _CACHE, ignore_errors=True)
    os.environ[_DATA] = _CACHE
os.environ.pop("GPATTERN_BENCH_MIRROR", None)

# What is imported and collected stays: looking through it for garbage takes half of the time.
gc.disable()

# A busy machine is no failure: no example and no draw is too slow.
settings.register_profile("calm", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("calm")

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


_TORCH = re.compile(
    r"^\s*(from|import) (torch|accelerate|gpattern_bench\.methods\.gpsnet(?!\.config))\b", re.M
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what needs real files, a browser or torch; `slow` is written where it holds."""
    torch = {path: bool(_TORCH.search(path.read_text())) for path in {item.path for item in items}}
    for item in items:
        fixtures = set(getattr(item, "fixturenames", ()))
        if "shared" in fixtures:
            item.add_marker("real")
        if "chromium" in fixtures:
            item.add_marker("browser")
        if torch[item.path] or "brief_training" in fixtures:
            item.add_marker("torch")
    # Modules with slow tests go first: what is left for the end is short.
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_collection_finish() -> None:
    """Look for garbage in what tests make only."""
    gc.freeze()
    gc.enable()


@pytest.fixture
def command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Run `gpattern-bench ...` in this process: exit code, stdout and stderr."""
    from gpattern_bench.cli import main

    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["gpattern-bench", *map(str, words)])
        with pytest.raises(SystemExit) as caught:
            main()
        return int(caught.value.code or 0), *capsys.readouterr()

    return run


@pytest.fixture
def cli(command: Callable[..., tuple[int, str, str]]) -> Callable[..., tuple[int, str]]:
    """The same, without stdout."""

    def run(*words: object) -> tuple[int, str]:
        code, _, err = command(*words)
        return code, err

    return run


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of real source files and upstream's outputs; skips the test where it is absent."""
    if not SHARED.is_dir():
        pytest.skip(f"the real source files are not at {SHARED}")
    return SHARED


@pytest.fixture(scope="module")
def chromium():
    """The system's Chromium."""
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        pytest.skip("no chromium on this machine")
    from samples import PATIENCE_S

    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=path, args=["--no-sandbox"], timeout=1000 * PATIENCE_S
        )
        yield browser
        browser.close()


@pytest.fixture
def views() -> None:
    """Arrow's view types, which older versions of pyarrow cannot write into Parquet files."""
    try:
        pq.write_table(pa.table({"a": pa.array(["b"], pa.string_view())}), pa.BufferOutputStream())
    except (pa.ArrowNotImplementedError, TypeError) as error:
        pytest.skip(f"pyarrow {pa.__version__} cannot write views: {error}")


@pytest.fixture(scope="module")
def brief_training() -> Iterator[None]:
    """One epoch for networks, few trees, few steps: for tests of what any method must do."""
    from gpattern_bench.methods import _forest
    from gpattern_bench.methods.boosted import method as boosted
    from gpattern_bench.methods.gpsnet import method as gpsnet
    from gpattern_bench.methods.gpsnet.config import TRAININGS
    from gpattern_bench.methods.locfish import method as locfish

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_forest, "_TREES", 30)
        patch.setattr(boosted, "_TREES", 20)
        patch.setattr(boosted, "_ROUNDS", 15)
        patch.setattr(locfish, "_STEPS", 250)
        patch.setattr(gpsnet, "steps_for", lambda cells: min(8, cells))
        patch.setattr(gpsnet, "FINE_TUNING", replace(gpsnet.FINE_TUNING, steps=8))
        patch.setitem(TRAININGS, "small", replace(TRAININGS["small"], epochs=1))
        yield


@pytest.fixture
def mirror(shared: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same, as the mirror from which datasets are fetched."""
    monkeypatch.setenv("GPATTERN_BENCH_MIRROR", str(shared))
    return shared


@pytest.fixture(scope="module")
def dask_cluster() -> Iterator[str]:
    """Address of a Dask scheduler of two workers, each a process, on loopback."""
    distributed = pytest.importorskip(
        "distributed", reason="Dask is not installed: pip install 'gpattern-bench[dask]'"
    )
    import dask
    from samples import PATIENCE_S

    patience = dict.fromkeys(("connect", "tcp"), f"{PATIENCE_S} s")  # they import much first
    # A task that kills its worker is not tried again, on three more.
    options = {"comm.timeouts": patience, "scheduler.allowed-failures": 0}
    # While they wait, all look at their clocks fifty times a second, and workers at themselves.
    options |= {"admin.tick.interval": "1 s", "admin.system-monitor.interval": "10 s"}
    options |= {"worker.profile.enabled": False, "worker.memory.monitor-interval": "1 s"}
    with dask.config.set({f"distributed.{name}": value for name, value in options.items()}):
        cluster = distributed.LocalCluster(
            # Port 0: any that is free, for two clusters on one machine.
            n_workers=2,
            threads_per_worker=1,
            processes=True,
            dashboard_address=":0",
        )
    with cluster:
        yield cluster.scheduler_address
