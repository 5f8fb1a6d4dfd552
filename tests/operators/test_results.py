"""What Airflow can't store as an XCom fails in the task, with the reason."""

from __future__ import annotations

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException

from airflow_provider_onebox.exceptions import OneboxUnusableResultError
from airflow_provider_onebox.operators.onebox import OneboxRequestOperator


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (dict.keys, "TypeError"),
        (lambda response: (name for name in response), "TypeError"),
        (lambda _: object(), "TypeError"),
        (lambda _: {("a", 1): 2, "__classname__": "x"}, "Error: "),
        (lambda _: {"a": [1, float("nan")]}, r"the result\['a'\]\[1\] is nan, which JSON does not have"),
        (lambda _: [-float("inf")], r"the result\[0\] is -inf, which"),
        (lambda _: {"a": "x\0"}, r"the result\['a'\] holds U\+0000, which PostgreSQL rejects"),
        (lambda _: {"x\0": 1}, r"a key of the result holds U\+0000"),
        (lambda _: ["\ud83d"], r"the result\[0\] holds half of a surrogate pair"),
        (lambda _: {"\udfff": 1}, "a key of the result holds half of a surrogate pair"),
        (lambda _: [2**64], r"the result\[0\] is a number of more than 64 bits"),
        (lambda _: -(2**63) - 1, "the result is a number of more than 64 bits"),
        (lambda _: "x" * (2**20 - 1), r"it is 1,048,577 bytes of JSON, and an XCom holds at most 1,048,576 here"),
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_result_that_airflow_cannot_store(connected, make, problem, method):
    """What would fail when Airflow stores it fails before, without a retry, and says so; the write is made once."""
    body = None if method == "GET" else {"Name": "A"}
    task = OneboxRequestOperator(task_id="t", endpoint="contactrz", method=method, json=body, response_filter=make)
    start = f"^{method} contactrz succeeded, but Airflow can't store its result as an XCom: .*{problem}"
    with pytest.raises(OneboxUnusableResultError, match=start) as caught:
        task.execute({})
    assert isinstance(caught.value, AirflowFailException)
    assert caught.value.uncertain is ("The write was made" in str(caught.value)) is (method == "POST")
    assert len(connected.state.books()) == (method == "POST")
    task.do_xcom_push = False
    task.execute({})


@pytest.mark.parametrize("result", ["x" * (2**20 - 2), 2**64 - 1, -(2**63), True, None, {"a": [1.5, "\ud7ff\ue000"]}])
def test_result_that_airflow_can_store(connected, result):
    """The greatest and the longest that an XCom takes is no problem."""
    task = OneboxRequestOperator(task_id="t", endpoint="ticketrz", response_filter=lambda _: result)
    assert task.execute({}) == result
