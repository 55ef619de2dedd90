"""What a transition looks like to others; the field names are a promise."""

import json
from dataclasses import replace

import msgspec

from executord.core.cloudevents import CloudEvent, cloud_event, rfc3339
from executord.core.reasons import Reason
from executord.core.run import Stage, StageCost, Transition
from executord.core.states import State

END = Transition(
    run_id="r-2041",
    number=7,
    seq=1234,
    time=1_800_000_000.25,
    from_state=State.FINISHING,
    to_state=State.FAILED,
    reason=Reason.EXIT_CODE,
    detail="Exit code 3.",
    costs=(StageCost(stage=Stage.FINISH, seconds=0.5, files_sent=2, bytes_sent=99, way="upper"),),
)


def test_an_end_tells_everything() -> None:
    assert cloud_event("node 7/ä", END) == {
        "specversion": "1.0",
        "id": "node 7/ä/r-2041/7",
        "source": "/executord/node%207%2F%C3%A4",
        "type": "executord.run.transition.v1",
        "subject": "r-2041",
        "time": "2027-01-15T08:00:00.250000Z",
        "datacontenttype": "application/json",
        "sequence": "00000000000000001234",
        "data": {
            "run_id": "r-2041",
            "number": 7,
            "seq": 1234,
            "time": "2027-01-15T08:00:00.250000Z",
            "from": "Finishing",
            "to": "Failed",
            "reason": "exit_code",
            "side": "user",
            "sentence": "The command ended with an exit code other than 0.",
            "detail": "Exit code 3.",
            "advice": "Read the end of the console: `executorctl logs r-2041`.",
            "costs": [
                {
                    "stage": "finish",
                    "seconds": 0.5,
                    "files_from_cache": 0,
                    "bytes_from_cache": 0,
                    "files_fetched": 0,
                    "bytes_fetched": 0,
                    "files_sent": 2,
                    "bytes_sent": 99,
                    "way": "upper",
                    "why": "",
                }
            ],
        },
    }


def test_a_beginning_explains_nothing() -> None:
    first = Transition(
        run_id="r", number=1, seq=1, time=0.0, from_state=None, to_state=State.QUEUED
    )
    data = cloud_event("n", first)["data"]
    assert (data["from"], data["reason"], data["side"]) == (None, None, None)
    assert (data["sentence"], data["detail"], data["advice"], data["costs"]) == ("", "", "", [])


def test_every_event_is_of_its_declared_type_and_has_a_schema() -> None:
    event = json.loads(msgspec.json.encode(cloud_event("n", END)))
    assert msgspec.convert(event, CloudEvent) == event
    schema = msgspec.json.schema(CloudEvent)
    data = schema["$defs"]["TransitionData"]
    assert set(schema["$defs"]["CloudEvent"]["required"]) == set(event)
    assert set(data["required"]) == set(event["data"])


def test_sequences_sort_like_numbers() -> None:
    texts = [
        cloud_event("n", replace(END, seq=seq))["sequence"] for seq in (2, 10, 99, 1000, 2**62)
    ]
    assert texts == sorted(texts)


def test_times_are_utc_with_microseconds() -> None:
    assert rfc3339(0) == "1970-01-01T00:00:00.000000Z"
    assert rfc3339(1_800_000_000.123456) == "2027-01-15T08:00:00.123456Z"
