"""Answers of a given form through the engine and the scheduler."""

from __future__ import annotations

import json
import queue
import threading
from dataclasses import replace

import jsonschema
import numpy as np
import pytest
from tokenizers import Tokenizer

from comem_jax.models import Qwen3
from serving.engine import Engine, Sampling
from serving.grammar import Form, Grammar, Grammars, Guide, choice_rule, json_rule, pattern_rule
from serving.jobs import Generation, Output
from serving.metrics import Metrics
from serving.scheduler import Scheduler
from serving.text import TokenBytes

END = 2
DRAWN = Sampling(temperature=1.0, seed=3)
LIST = {"type": "array", "items": {"enum": ["fox", 1, None]}, "minItems": 12, "maxItems": 12}


@pytest.fixture(scope="module")
def grammars(model: Qwen3, tokenizer: Tokenizer) -> Grammars:
    return Grammars(tokenizer, model.config.vocab_size, [END])


def answered(engine: Engine, tokenizer: Tokenizer, asked: list[Generation]) -> list[Output]:
    """Run some generations together; each one's outputs as one."""
    scheduler = Scheduler(engine, TokenBytes(tokenizer), frozenset({END}), Metrics("tiny"))
    outputs: list[queue.Queue[Output]] = [queue.Queue() for _ in asked]
    for one, out in zip(asked, outputs, strict=True):
        scheduler.submit(one, out.put)
    thread = threading.Thread(target=scheduler.run)
    thread.start()
    found = [gathered(out) for out in outputs]
    scheduler.stop()
    thread.join(60)
    return found


def gathered(outputs: queue.Queue[Output]) -> Output:
    whole = Output()
    while not whole.last:
        new = outputs.get(timeout=120)
        whole = replace(new, text=whole.text + new.text, tokens=whole.tokens + new.tokens)
    return whole


@pytest.fixture(scope="module")
def warm(model: Qwen3) -> Engine:
    """An engine whose store holds one long answer or two short ones, and whose programs are compiled."""
    engine = Engine(model, slots=2, window=144, pages=9, chunk=32, eos_ids=(END,))
    engine.warm_up()
    return engine


def test_answers_put_off_go_on_in_their_form(warm: Engine, tokenizer: Tokenizer, grammars: Grammars) -> None:
    """Two long answers in a store that does not hold them together: none notices, and all keep to the form."""
    form = grammars.compile(Form(json_rule(LIST)))
    asked = [Generation([9 + n] * 20, 200, replace(DRAWN, seed=n), grammar=form) for n in range(2)]
    alone = [answered(warm, tokenizer, [one])[0] for one in asked]
    assert [one.text for one in answered(warm, tokenizer, asked)] == [one.text for one in alone]
    assert sum(1 + (20 + one.tokens) // 16 for one in alone) > 9  # pages: they do not fit together
    for one in alone:
        assert one.finish == "stop"
        jsonschema.validate(json.loads(one.text), LIST)


def test_nothing_is_compiled_for_a_form(warm: Engine, tokenizer: Tokenizer, grammars: Grammars) -> None:
    programs = (warm._generate, warm._prefill, warm._set_taste)
    compiled = [program._cache_size() for program in programs]
    plain = Generation([5] * 30, 40, Sampling(temperature=0.7, ignore_eos=True, bias={3: 1.0}))
    for form in (Form(json_rule(LIST)), Form(pattern_rule("(the|fox| ){9}"))):
        formed = Generation([7] * 30, 90, replace(DRAWN, top=2, frequency=0.5), grammar=grammars.compile(form))
        for asked in ([formed], [plain, formed, formed], [formed, plain]):
            answered(warm, tokenizer, asked)
    assert [program._cache_size() for program in programs] == compiled


def test_an_answer_of_any_form_is_the_same_beside_others_and_after_them(
    warm: Engine, tokenizer: Tokenizer, grammars: Grammars
) -> None:
    plain = Generation([6] * 20, 30, replace(DRAWN, ignore_eos=True))
    formed = Generation([7] * 20, 30, DRAWN, grammar=grammars.compile(Form(pattern_rule("(the|fox) "))))
    warm.reset()
    alone = answered(warm, tokenizer, [plain])[0].text
    texts = [one.text for one in answered(warm, tokenizer, [formed, plain, formed, plain])]
    assert texts[1] == texts[3] == alone
    assert [one.text for one in answered(warm, tokenizer, [plain, plain])] == [alone] * 2


@pytest.mark.parametrize(
    ("sampling", "tokens"),
    [(Sampling(), 1), (Sampling(least=3), 4), (Sampling(least=50), 10), (Sampling(ignore_eos=True), 20)],
)
def test_ends_come_by_the_form_and_by_what_the_request_says(
    warm: Engine, tokenizer: Tokenizer, grammars: Grammars, sampling: Sampling, tokens: int
) -> None:
    """The form has at most nine letters; an end is as likely as can be."""
    form = grammars.compile(Form(pattern_rule("x{0,9}")))
    sampling = replace(sampling, bias={END: 100.0})
    whole = answered(warm, tokenizer, [Generation([5] * 9, 20, sampling, grammar=form)])[0]
    assert whole.tokens == tokens
    assert set(whole.text) <= {"x"}
    assert whole.finish == ("length" if sampling.ignore_eos else "stop")


class Failing(Guide):
    """A form that becomes too complex at once."""

    def fill(self, bits: np.ndarray, ends: bool = True) -> None:
        raise RuntimeError("too complex")


class FailingGrammar(Grammar):
    def begin(self) -> Guide:
        return Failing(self._matcher, self._ends)


def test_a_form_that_fails_fails_alone(warm: Engine, tokenizer: Tokenizer, grammars: Grammars) -> None:
    grammar = grammars.compile(Form(choice_rule(["fox"])))
    failing = FailingGrammar(grammar._matcher, grammar._ends)
    asked = [Generation([8] * 5, 30, DRAWN, grammar=one) for one in (grammar, failing)]
    whole, failed = answered(warm, tokenizer, asked)
    assert (whole.text, whole.finish) == ("fox", "stop")
    assert str(failed.error) == "too complex"
    assert not warm.open_slots and warm.store.free == warm.store.pages
