"""The prompt builder's layout."""

from comem_jax.actions import Action
from comem_jax.memory.history import Step, Summary, Task
from comem_jax.memory.prompt import (
    OMITTED_OBSERVATION,
    OMITTED_STEPS,
    SUMMARY_HEADER,
    SUMMARY_INSTRUCTION,
    View,
    agent_messages,
    memory_messages,
    step_messages,
)

TASK = Task("t", "Mend it.", "You repair.", ("a pin", "another"))
STEPS = [Step(i, f"thought {i}", Action("search", {"search_term": f"{i}"}), f"seen {i}") for i in (1, 2, 3)]
HEAD = [
    {"role": "system", "content": "You repair."},
    {"role": "user", "content": "Mend it.\nConstraint: a pin\nConstraint: another"},
]


def test_the_layout_from_stable_to_volatile():
    messages = agent_messages(View(TASK, STEPS[2:], Summary("facts", 2), volatile="Steps remaining: 1"))
    assert messages == [
        *HEAD,
        {"role": "user", "content": SUMMARY_HEADER + "facts"},
        *step_messages(STEPS[2]),
        {"role": "user", "content": "Steps remaining: 1"},
    ]


def test_a_step_is_a_call_and_its_result():
    call, result = step_messages(STEPS[0])
    assert call["content"] == "thought 1"
    assert call["tool_calls"][0]["function"] == {"name": "search", "arguments": '{"search_term": "1"}'}
    assert result == {"role": "tool", "tool_call_id": call["tool_calls"][0]["id"], "content": "seen 1"}
    assert step_messages(STEPS[0], masked=True) == [call, {**result, "content": OMITTED_OBSERVATION}]


def test_a_step_without_a_call():
    assert step_messages(Step(1, "hm", None, "Call a tool.")) == [
        {"role": "assistant", "content": "hm"},
        {"role": "user", "content": "Call a tool."},
    ]


def test_the_models_own_json_is_kept():
    step = Step(1, "", Action("search", {"a": "b"}, raw='{"a":  "b"}'), "")
    assert step_messages(step)[0]["tool_calls"][0]["function"]["arguments"] == '{"a":  "b"}'


def test_masked_and_omitted():
    contents = [message["content"] for message in agent_messages(View(TASK, STEPS, masked=2, omitted=True))]
    assert contents[2:] == [
        OMITTED_STEPS, "thought 1", OMITTED_OBSERVATION, "thought 2", OMITTED_OBSERVATION, "thought 3", "seen 3",
    ]  # fmt: skip


def test_without_a_system_prompt():
    assert agent_messages(View(Task("t", "Mend it."), ())) == [{"role": "user", "content": "Mend it."}]


def test_the_memory_prompt_only_grows_at_its_end():
    shorter, longer = memory_messages(TASK, STEPS[:2]), memory_messages(TASK, STEPS)
    assert shorter[-1] == longer[-1] == {"role": "user", "content": SUMMARY_INSTRUCTION}
    assert longer[: len(shorter) - 1] == shorter[:-1]
    assert memory_messages(TASK, STEPS[2:], Summary("facts", 2))[:3] == [
        *HEAD,
        {"role": "user", "content": SUMMARY_HEADER + "facts"},
    ]
