"""Threads follow the processors that a process may use, and sleep while they wait."""

from __future__ import annotations

import os
import threading

import pytest
from samples import PATIENCE_S

from gpattern_bench.base import threads
from gpattern_bench.base.threads import (
    calm_threads,
    in_threads,
    own_threads,
    processors,
    threads_of_workers,
)
from gpattern_bench.base.workers import in_order, workers


@pytest.fixture
def allowed(tmp_path, monkeypatch):
    """No control group, and an affinity of eight processors."""
    monkeypatch.setattr(threads, "_CGROUP", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    for name in ("OMP_WAIT_POLICY", "OMP_NUM_THREADS"):
        monkeypatch.setenv(name, "")  # so that what the test sets is taken back
        monkeypatch.delenv(name)
    return tmp_path


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("200000 100000", 2),
        ("150000 100000", 2),  # a part of a processor is one
        ("10000 100000", 1),
        ("9900000 100000", 8),  # the affinity is less
        ("max 100000", 8),
    ],
)
def test_a_quota_counts_in_version_2(allowed, text, expected):
    (allowed / "cpu.max").write_text(f"{text}\n")
    assert processors() == expected


@pytest.mark.parametrize(("quota", "expected"), [("300000", 3), ("-1", 8)])
def test_a_quota_counts_in_version_1(allowed, quota, expected):
    (allowed / "cpu").mkdir()
    (allowed / "cpu" / "cpu.cfs_quota_us").write_text(f"{quota}\n")
    (allowed / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert processors() == expected


def test_without_affinity_all_processors_count(allowed, monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity")
    assert processors() == 64


def test_threads_wait_asleep_and_are_no_more_than_the_processors(allowed):
    calm_threads()
    assert (os.environ["OMP_WAIT_POLICY"], os.environ["OMP_NUM_THREADS"]) == ("PASSIVE", "8")


def test_what_the_user_set_stays(allowed, monkeypatch):
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    calm_threads()
    assert (os.environ["OMP_WAIT_POLICY"], os.environ["OMP_NUM_THREADS"]) == ("ACTIVE", "3")


def test_the_number_stays_open_where_all_processors_are_allowed(allowed, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    calm_threads()
    assert "OMP_NUM_THREADS" not in os.environ


@pytest.mark.parametrize(("limit", "expected"), [("", "4"), ("3", "3"), ("64", "4"), ("2,1", "4")])
def test_workers_divide_the_processors(allowed, monkeypatch, limit, expected):
    monkeypatch.setenv("OMP_NUM_THREADS", limit)
    monkeypatch.setenv("NUMBA_NUM_THREADS", limit)
    found = threads_of_workers(2)
    assert (found["OMP_NUM_THREADS"], found["NUMBA_NUM_THREADS"]) == (expected, expected)


def test_workers_have_their_share_of_what_this_process_has(allowed):
    calm_threads()
    assert os.environ["OMP_NUM_THREADS"] == "8"
    assert threads_of_workers(8)["OMP_NUM_THREADS"] == "1"
    assert threads_of_workers(9)["OMP_NUM_THREADS"] == "1"


def test_work_is_done_ahead_and_comes_in_order():
    begun, third = [], threading.Event()

    def slow_at_first(i):
        begun.append(i)
        if len(begun) >= 3:
            third.set()
        if i == 0:
            assert third.wait(PATIENCE_S)  # it ends after the others have begun
        return i * i

    stream = in_threads(slow_at_first, iter(range(10)), workers=2)
    assert next(stream) == 0
    assert 2 < len(begun) < 10
    assert list(stream) == [i * i for i in range(1, 10)]


def test_what_fails_ahead_fails_here():
    with pytest.raises(ZeroDivisionError):
        list(in_threads(lambda i: 1 // i, [1, 0, 1], workers=1))


def test_workers_compute_with_one_thread_each(monkeypatch):
    monkeypatch.setattr(threads, "processors", lambda: 3)
    assert own_threads() == 3
    with workers(2, None) as pool:
        assert list(in_order(pool, own_threads, [(), ()])) == [1, 1]
