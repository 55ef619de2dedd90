"""A transition as others receive it: a CloudEvent 1.0 in structured JSON.

https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/formats/json-format.md
"""

from dataclasses import asdict
from datetime import UTC, datetime
from typing import Literal, TypedDict
from urllib.parse import quote

from executord.core.reasons import MEANINGS
from executord.core.run import StageCost, Transition

TYPE = "executord.run.transition.v1"


class StageCostData(TypedDict):
    stage: str
    seconds: float
    files_from_cache: int
    bytes_from_cache: int
    files_fetched: int
    bytes_fetched: int
    files_sent: int
    bytes_sent: int
    way: str
    why: str


# Not as a class, since "from" is a word of Python.
TransitionData = TypedDict(
    "TransitionData",
    {
        "run_id": str,
        "number": int,
        "seq": int,
        "time": str,
        "from": str | None,
        "to": str,
        "reason": str | None,
        "side": str | None,
        "sentence": str,
        "detail": str,
        "advice": str,
        "costs": list[StageCostData],
    },
)
TransitionData.__doc__ = """What happened, for programs and people.

`number` counts the run's transitions from 1 without gaps, `seq` the node's. `reason` and `side`
are null, and the texts empty, where nothing has to be explained. `time` is RFC 3339 in UTC.
"""


class CloudEvent(TypedDict):
    """`id` is `<node>/<run>/<number>`, the key by which a receiver knows a repetition.

    `sequence` is the node-wide number as text that sorts like the number (the CloudEvents
    sequence extension).
    """

    specversion: Literal["1.0"]
    id: str
    source: str
    type: str
    subject: str
    time: str
    datacontenttype: Literal["application/json"]
    sequence: str
    data: TransitionData


def cloud_event(node: str, transition: Transition) -> CloudEvent:
    """`transition` has to be durable: its `seq` is the journal's."""
    time = rfc3339(transition.time)
    meaning = MEANINGS[transition.reason] if transition.reason else None
    return {
        "specversion": "1.0",
        "id": f"{node}/{transition.run_id}/{transition.number}",
        "source": f"/executord/{quote(node, safe='')}",
        "type": TYPE,
        "subject": transition.run_id,
        "time": time,
        "datacontenttype": "application/json",
        "sequence": f"{transition.seq:020d}",
        "data": {
            "run_id": transition.run_id,
            "number": transition.number,
            "seq": transition.seq,
            "time": time,
            "from": transition.from_state.value if transition.from_state else None,
            "to": transition.to_state.value,
            "reason": transition.reason.value if transition.reason else None,
            "side": meaning.side.value if meaning else None,
            "sentence": meaning.sentence if meaning else "",
            "detail": transition.detail,
            "advice": meaning.advice.replace("RUN", transition.run_id) if meaning else "",
            "costs": [_cost(cost) for cost in transition.costs],
        },
    }


def rfc3339(unix_seconds: float) -> str:
    """In UTC with microseconds: `2026-11-22T19:30:25.000000Z`."""
    time = datetime.fromtimestamp(unix_seconds, UTC)
    return time.replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"


def _cost(cost: StageCost) -> StageCostData:
    fields = asdict(cost)
    return StageCostData(**{**fields, "stage": cost.stage.value})  # type: ignore[typeddict-item]
