"""How far behind a summary is as the agent reads it: training draws the lag of each row as serving shows it.

The lag of a prompt is the number of finished steps after those its summary covers (`Usage.staleness`). Under the
schedule `freshest` with k, step m k ends with the launch of a summary of all m k steps. The agent's next prompt is made
at that very moment, still with the summary before it, which covers (m - 1) k steps: a lag of k. Where the memory model
takes less than a step, the new summary is there at the prompt after that, whose lag is 1, and stays for k prompts, with
the lags 1, 2, ... k. So each phase of the schedule has its own lag, and over a run they are uniform over 1 to k.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field, model_validator

from comem_jax.config import Config
from comem_jax.errors import UserError, nearest
from comem_jax.memory.log import EventLog, PastRun
from envs.run_log import LOG_FILE

_NEEDS: Mapping[str, tuple[str, ...]] = {
    "none": (),
    "fixed": ("lag",),
    "serving": ("k",),
    "uniform": ("k",),
    "measured": ("run", "policy"),
}


class StalenessConfig(Config):
    """How the lag of a row is drawn.

    `none`: always 0. `fixed`: always `lag`. `serving`: as the schedule `freshest` with `k` shows it, 1 to k, each as
    likely. `uniform`: 0 to k, each as likely: what `sync` shows, 0 to k - 1, and what `freshest` does. `measured`: as
    often as the agent met it in the runs of a `policy` in the evaluation folder `run`.
    """

    kind: Literal["none", "fixed", "serving", "uniform", "measured"] = "none"
    lag: int | None = Field(default=None, ge=0)
    k: int | None = Field(default=None, ge=1)
    run: Path | None = None
    policy: str | None = None

    @model_validator(mode="after")
    def _what_the_kind_needs(self) -> StalenessConfig:
        for name in ("lag", "k", "run", "policy"):
            given, needed = getattr(self, name) is not None, name in _NEEDS[self.kind]
            if given != needed:
                raise ValueError(f"the kind {self.kind!r} {'needs' if needed else 'has no'} {name!r}")
        return self


@dataclass(frozen=True)
class Staleness:
    """A distribution of lags: how likely each one is."""

    shares: Mapping[int, float]

    def draw(self, rng: np.random.Generator, n_steps: int) -> int:
        """Return a lag for a row of `n_steps` finished steps, at most n_steps - 1: a summary covers one at least.

        A lag that is longer becomes the longest there can be. Raises `ValueError` for a row without steps.
        """
        if n_steps < 1:
            raise ValueError("a row without a step has nothing to summarize")
        lags = sorted(self.shares)
        return min(int(rng.choice(lags, p=[self.shares[lag] for lag in lags])), n_steps - 1)

    def of_row(self, seed: int, row: int, n_steps: int) -> int:
        """Return the lag of a row, the same each time for the same seed and row."""
        return self.draw(np.random.default_rng((seed, row)), n_steps)


def make_staleness(config: StalenessConfig) -> Staleness:
    """Return the distribution; raises `UserError` where a measured one cannot be read."""
    return _MAKERS[config.kind](config)


def _serving(config: StalenessConfig) -> Staleness:
    assert config.k is not None
    return Staleness(dict.fromkeys(range(1, config.k + 1), 1 / config.k))


def _uniform(config: StalenessConfig) -> Staleness:
    assert config.k is not None
    return Staleness(dict.fromkeys(range(config.k + 1), 1 / (config.k + 1)))


def _fixed(config: StalenessConfig) -> Staleness:
    assert config.lag is not None
    return Staleness({config.lag: 1.0})


def _measured(config: StalenessConfig) -> Staleness:
    assert config.run is not None and config.policy is not None
    counts: Counter[int] = Counter()
    for past in _runs(config.run, config.policy):
        counts.update(lags_of(past))
    if not counts:
        raise UserError(f"no step of the policy {config.policy!r} in {config.run} was done with a summary in use")
    return Staleness({lag: count / counts.total() for lag, count in sorted(counts.items())})


def lags_of(past: PastRun) -> list[int]:
    """Return the lag at each agent call of a run that had a summary; before the first one there is none to be late."""
    called = zip(past.steps, past.usage)
    return [usage.staleness for step, usage in called if usage and usage.staleness < step.index - 1]


def _runs(folder: Path, policy: str) -> list[PastRun]:
    if not (folder / LOG_FILE).is_file():
        raise UserError(f"there is no {LOG_FILE} in {str(folder)!r} to read the staleness from")
    with EventLog(folder / LOG_FILE, read_only=True) as log:
        infos = log.runs()
        policies = {str(info.meta.get("policy")) for info in infos}
        if policy not in policies:
            raise UserError(f"no run of a policy {policy!r} in {str(folder)!r}{nearest(policy, policies)}")
        wanted = [info.id for info in infos if info.meta.get("policy") == policy]
        return [past for run in wanted if (past := log.load(run)) is not None]


_MAKERS: Mapping[str, Callable[[StalenessConfig], Staleness]] = {
    "none": lambda config: Staleness({0: 1.0}),
    "fixed": _fixed,
    "serving": _serving,
    "uniform": _uniform,
    "measured": _measured,
}
