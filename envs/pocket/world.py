"""The pocket world's generator: small real Python repositories, each with one bug that only an early fact can mend.

A repository is a chain of modules. The issue names a function; its module defines settings in capitals and refers to
the next module, by import or by a name to search for, and so on to the last one, which has stale settings in small
letters. The first modules' settings must stand there instead: what is read in steps 2 to 4 is needed five or more on.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from comem_jax.errors import UserError, nearest
from envs.repair import Instance

WORDS = tuple(
    """amber apple aspen basil birch bloom brick brush camel cargo chalk cloud cobra crane crown delta dove ember
    falcon field flint frost ginger globe gravel hazel honey ivory jade jungle kettle lake lilac lotus mango
    marble melon moss nickel oasis olive opal otter peach pepper plum quartz raven ridge robin ruby sage shell
    slate spruce storm tango tiger tulip velvet walnut zebra""".split()
)
KEYS = ("UNIT", "ZONE", "TINT", "RANK", "MODE", "LANE", "CREW", "PORT")
TEST_FILE = "tests/test_app.py"
SPLITS = {"train": (0, 1_000_000), "validation": (1_000_000, 1_100_000), "test": (1_100_000, 1_200_000)}

SYSTEM = "You repair a Python repository. Call one tool at a time."
ISSUE = (
    "The function `{function}` fails. Follow the references from its file to the last one, replace each stale setting "
    "in small letters there by the setting in capitals that the first files define, run the tests and finish."
)


@dataclass(frozen=True)
class Module:
    """One file of the chain: `constants` maps setting names to values; `by_name` says how it refers to the next one."""

    name: str
    function: str
    constants: dict[str, str]
    helpers: tuple[tuple[str, str, str], ...]
    by_name: bool = False

    @property
    def path(self) -> str:
        """The file's path in the repository."""
        return f"app/{self.name}.py"


@dataclass(frozen=True)
class PocketTask:
    """A generated repository with what an all-knowing oracle knows of it.

    `chain` runs from the function the issue names to the module that must be mended; `fixes` maps each setting that is
    stale there to its (wrong value, right value), in the order in which that module lists them.
    """

    instance: Instance
    chain: tuple[Module, ...]
    fixes: dict[str, tuple[str, str]]


def split_seed(split: str, index: int) -> int:
    """Return the seed of task `index` in a split (`train`, `validation` or `test`); splits never share a seed."""
    if split not in SPLITS:
        raise UserError(f"no split {split!r} in the pocket world{nearest(split, SPLITS)}")
    start, end = SPLITS[split]
    if not 0 <= index < end - start:
        raise UserError(f"task {index} is outside the {split} split, which has {end - start} tasks")
    return start + index


def generate(seed: int) -> PocketTask:
    """Return the task of a seed; the same seed always gives the same repository."""
    rng = random.Random(seed)
    words = rng.sample(WORDS, len(WORDS))
    length = rng.randint(6, 8)
    names, functions = _take(words, length), _take(words, length)
    keys = rng.sample(KEYS, 2)
    right = dict(zip(keys, _take(words, 2), strict=True))
    wrong = dict(zip(keys, _take(words, 2), strict=True))
    hops = _search_hops(rng, length)
    chain = []
    for position in range(length):
        constants = {key: right[key] for key in keys[position : position + 1]}
        if position == length - 1:
            constants = {key.lower(): wrong[key] for key in keys}
        helpers = tuple((w[0], w[1], w[2]) for w in (rng.sample(words, 3) for _ in range(rng.randint(1, 3))))
        chain.append(Module(names[position], functions[position], constants, helpers, position in hops))
    decoy = Module(words[0], f"{functions[0]}_old", {}, ((words[1], words[2], words[3]),))
    fixes = {key: (wrong[key], right[key]) for key in keys}
    return PocketTask(_instance(seed, chain, decoy, keys), tuple(chain), fixes)


def _take(words: list[str], count: int) -> list[str]:
    taken = words[:count]
    del words[:count]
    return taken


def _search_hops(rng: random.Random, length: int) -> set[int]:
    """At most two hops are by name, so that a task takes at most 15 steps."""
    return set(rng.sample(range(length - 1), rng.randint(0, 2)))


def _instance(seed: int, chain: list[Module], decoy: Module, keys: list[str]) -> Instance:
    files = {"app/__init__.py": "", "app/find.py": _FIND, TEST_FILE: _tests(chain, keys)}
    for module, following in zip(chain, [*chain[1:], None], strict=True):
        files[module.path] = _source(module, following)
    files[decoy.path] = _source(decoy, None)
    return Instance(
        id=f"pocket-{seed}",
        problem_statement=ISSUE.format(function=chain[0].function),
        files=dict(sorted(files.items())),
        fail_to_pass=(*(f"{TEST_FILE}::test_{key.lower()}" for key in keys), f"{TEST_FILE}::test_chain"),
        pass_to_pass=(f"{TEST_FILE}::test_helpers",),
        system=SYSTEM,
        protected=(TEST_FILE,),
    )


def _source(module: Module, following: Module | None) -> str:
    lines = []
    if following is not None:
        lines.append(
            "from app.find import find" if module.by_name else f"from app.{following.name} import {following.function}"
        )
    lines += [f"{key} = '{value}'" for key, value in module.constants.items()]
    for name, old, new in module.helpers:
        lines.append(f"def {name}_text(text):\n    return text.replace('{old}', '{new}')")
    lines.append(f"def {module.function}():\n    return {_result(module, following)}")
    return "\n".join(lines) + "\n"


def _result(module: Module, following: Module | None) -> str:
    if following is None:
        return " + ".join(key.upper() for key in module.constants) or "''"
    return f"find('{following.function}')()" if module.by_name else f"{following.function}()"


_FIND = """import importlib
import pkgutil

import app


def find(name):
    for module in pkgutil.iter_modules(app.__path__):
        found = vars(importlib.import_module('app.' + module.name)).get(name)
        if found is not None:
            return found
    raise LookupError(name)
"""


def _tests(chain: list[Module], keys: list[str]) -> str:
    first, last = chain[0], chain[-1]
    owner = {key: module.name for module in chain[:2] for key in module.constants}
    modules = sorted({module.name for module in chain})
    lines = [*(f"import app.{name}" for name in modules), ""]
    lines += [
        f"\ndef test_{key.lower()}():\n    assert app.{last.name}.{key} == app.{owner[key]}.{key}\n" for key in keys
    ]
    settings = " + ".join(f"app.{owner[key]}.{key}" for key in keys)
    lines.append(f"\ndef test_chain():\n    assert app.{first.name}.{first.function}() == {settings}\n")
    checks = "".join(
        f"    assert app.{module.name}.{name}_text('{old}') == '{new}'\n"
        for module in chain[:-1]
        for name, old, new in module.helpers[-1:]
    )
    lines.append(f"\ndef test_helpers():\n{checks}")
    return "\n".join(lines)
