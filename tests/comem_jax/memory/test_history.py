import pytest

from comem_jax.memory.history import History, Step, Task


def test_steps_follow_one_another():
    history = History(Task("t", "text"))
    history.add(Step(1, "", None, ""))
    for index in (1, 3, 0):
        with pytest.raises(ValueError, match="does not follow step 1"):
            history.add(Step(index, "", None, ""))
    history.add(Step(2, "", None, ""))
    assert [step.index for step in history.steps] == [1, 2]
