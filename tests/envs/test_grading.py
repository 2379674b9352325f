"""Grading with real runs of pytest."""

import time
from pathlib import Path

import pytest

from envs.grading import Grade, grade

TESTS = """
import os, pytest, unittest

def test_good(): pass
def test_bad(): assert 0
@pytest.mark.parametrize("value", ["a b", "x::y", "d/e", "[1]"])
def test_many(value): assert value != "x::y"
@pytest.fixture
def broken_end():
    yield
    raise RuntimeError
def test_teardown(broken_end): pass
@pytest.mark.skip
def test_skipped(): pass
@pytest.mark.xfail
def test_expected(): assert 0
@pytest.mark.xfail(strict=True)
def test_unexpected(): pass
class TestA:
    class TestB:
        def test_deep(self): pass
class TestUnit(unittest.TestCase):
    def test_unit(self): pass
    def test_parts(self):
        for part in (0, 1):
            with self.subTest(part=part):
                assert part
def test_liar():
    print("PASSED tests/test_x.py::test_bad")
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_x.py").write_text(TESTS)
    return tmp_path


def x(*names: str) -> list[str]:
    return [f"tests/test_x.py::{name}" for name in names]


def test_every_outcome_in_one_run(folder):
    good = ["test_good", "test_many[a b]", "test_many[d/e]", "test_many[[1]]", "test_expected", "test_liar"]
    good += ["TestA::TestB::test_deep", "TestUnit::test_unit"]
    bad = ["test_bad", "test_many[x::y]", "test_teardown", "test_skipped", "test_unexpected", "test_gone"]
    bad += ["TestUnit::test_parts"]
    result = grade(folder, x(*bad), x(*good), timeout=30)
    assert result.passed == tuple(x(*good))
    assert result.failed == tuple(x(*bad))
    assert not result.resolved


def test_resolved_only_if_all_pass(folder):
    assert grade(folder, x("test_good"), x("TestA::TestB::test_deep"), 30).resolved
    assert not grade(folder, x("test_good"), x("test_bad"), 30).resolved
    assert not grade(folder, x("test_bad"), x("test_good"), 30).resolved


def test_nothing_wanted_is_not_resolved(folder):
    assert not grade(folder, [], [], 30).resolved


def test_a_file_that_cannot_be_imported_fails_alone(folder):
    (folder / "tests" / "test_broken.py").write_text("import nothing_of_this_name\ndef test_a(): pass\n")
    wanted = "tests/test_broken.py::test_a"
    result = grade(folder, [wanted], x("test_good"), 30)
    assert (result.passed, result.failed) == (tuple(x("test_good")), (wanted,))
    missing = grade(folder, ["tests/test_gone.py::test_a"], x("test_good"), 30)
    assert missing.passed == tuple(x("test_good"))
    assert not missing.resolved


def test_the_time_limit_holds(folder):
    (folder / "tests" / "test_x.py").write_text("import time\ndef test_good(): pass\ndef test_slow(): time.sleep(60)\n")
    begin = time.monotonic()
    result = grade(folder, x("test_good"), x("test_slow"), timeout=1.5)
    assert result.timed_out
    assert not result.resolved
    assert result.failed == tuple(x("test_good", "test_slow"))
    assert time.monotonic() - begin < 6


def test_a_run_that_ends_well_but_never_exits_has_failed(folder):
    thread = "import threading, time\nthreading.Thread(target=time.sleep, args=(60,)).start()\n"
    (folder / "tests" / "test_x.py").write_text(f"{thread}def test_good(): pass\n")
    result = grade(folder, x("test_good"), [], timeout=4.0)
    assert "1 passed" in result.output
    assert result.timed_out
    assert not result.resolved


def test_a_test_run_that_dies_is_not_resolved(folder):
    (folder / "tests" / "test_x.py").write_text("import os\ndef test_good(): pass\ndef test_exit(): os._exit(0)\n")
    assert not grade(folder, x("test_good"), [], 30).resolved


def test_grading_leaves_nothing_in_the_repository(folder):
    before = sorted(folder.rglob("*"))
    grade(folder, x("test_good"), [], 30)
    assert sorted(folder.rglob("*")) == before


def test_the_repositorys_own_settings_hold(folder):
    (folder / "pytest.ini").write_text("[pytest]\naddopts = -x\npythonpath = src\n")
    (folder / "src").mkdir()
    (folder / "src" / "only_there.py").write_text("")
    (folder / "tests" / "test_x.py").write_text("import only_there\ndef test_good(): pass\n")
    assert grade(folder, x("test_good"), [], 30).resolved


def test_a_grade_keeps_what_pytest_said(folder):
    result = grade(folder, x("test_bad"), [], 30)
    assert isinstance(result, Grade)
    assert "test_bad" in result.output
