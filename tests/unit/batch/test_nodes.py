"""What is said of nodes that lack an engine or a precision."""

from __future__ import annotations

from eagleray.batch.nodes import describe_faults

MISSING = "The engine openvino is not installed; install it with: pip install openvino."
SLOW = "This machine's CPU has no bfloat16."


def test_nodes_that_lack_nothing_are_not_mentioned() -> None:
    assert describe_faults({}, 0) == ""
    assert describe_faults({"worker-1": "", "worker-2": ""}, 3) == ""


def test_one_sentence_names_a_node_and_counts_those_with_its_fault() -> None:
    assert describe_faults({"a": "", "b": MISSING}, 2) == f"On node b of 2: {MISSING}"
    faults = {"d": SLOW, "c": SLOW, "b": MISSING, "a": ""}
    assert describe_faults(faults, 5) == f"On 2 of 5 nodes, such as c: {SLOW}"
