"""Streams of JSON lines: cut anywhere, added up over layers, followed through a build."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from executord.core.reasons import FaultError, Reason
from executord.engine.streams import BuildOutput, LineSplitter, TransferProgress, stream_error


@given(
    st.lists(st.binary(max_size=20).map(lambda line: line.replace(b"\n", b"x")), max_size=8),
    st.lists(st.integers(1, 9), min_size=1, max_size=40),
)
def test_lines_come_out_whole_wherever_the_stream_is_cut(
    lines: list[bytes], cuts: list[int]
) -> None:
    data = b"".join(line + b"\n" for line in lines)
    splitter, found, at, turn = LineSplitter(), list[bytes](), 0, 0
    while at < len(data):
        size = cuts[turn % len(cuts)]
        found += splitter.feed(data[at : at + size])
        at, turn = at + size, turn + 1
    assert found == [line for line in lines if line.strip()]


def _layer(status: str, layer: str, current: int = 0, total: int = 0) -> dict[str, Any]:
    detail = {"current": current, "total": total} if total else {}
    return {"status": status, "id": layer, "progressDetail": detail}


def test_progress_is_added_up_over_layers_and_extracting_does_not_count_again() -> None:
    transfer = TransferProgress("pull")
    transfer.feed(_layer("Pulling fs layer", "a"))
    transfer.feed(_layer("Already exists", "z"))
    transfer.feed(_layer("Downloading", "a", 10, 100))
    transfer.feed(_layer("Downloading", "b", 50, 200))
    seen = transfer.feed(_layer("Download complete", "a"))
    assert (seen.bytes_done, seen.bytes_total) == (150, 300)
    assert seen.detail == "a: Download complete"
    seen = transfer.feed(_layer("Extracting", "a", 1, 999))
    assert (seen.bytes_done, seen.bytes_total) == (150, 300)
    before_the_end = transfer.has_ended
    seen = transfer.feed({"status": "Status: Downloaded newer image for x"})
    assert (before_the_end, transfer.has_ended) == (False, True)
    assert seen.detail == "Status: Downloaded newer image for x"


def test_an_error_is_found_in_both_of_its_forms() -> None:
    assert stream_error({"errorDetail": {"code": 3, "message": "no"}, "error": "no"}) == (3, "no")
    assert stream_error({"error": "no"}) == (0, "no")
    assert stream_error({"status": "error: not one"}) is None


def _begun(*pieces: str) -> BuildOutput:
    build = BuildOutput()
    for piece in pieces:
        build.feed({"stream": piece})
    return build


def test_steps_are_counted_and_output_is_passed_on() -> None:
    build = BuildOutput()
    first = build.feed({"stream": "Step 1/3 : FROM x"})
    assert first is not None
    assert (first.output, first.step, first.steps) == (b"Step 1/3 : FROM x", 1, 3)
    build.feed({"stream": "Step 2/3 : RUN echo a && \\\n  echo b"})
    assert (build.step, build.instruction) == (2, "RUN echo a && \\\n  echo b")
    assert build.feed({"aux": {"ID": "sha256:1"}}) is None
    assert build.has_ended


def test_a_program_that_prints_a_headline_does_not_move_the_count() -> None:
    build = _begun("Step 1/3 : FROM x", "Step 2/3 : RUN x", "Step 3/3 : fake\n", "Step 9/9 : fake")
    assert (build.step, build.steps) == (2, 3)


def _fault(build: BuildOutput, message: str, code: int = 0) -> Any:
    with pytest.raises(FaultError) as caught:
        build.feed({"errorDetail": {"code": code, "message": message}, "error": message})
    return caught.value.fault


def test_a_command_that_fails_names_step_code_and_last_lines() -> None:
    build = _begun("Step 1/2 : FROM x", "\n", "Step 2/2 : RUN pip install no", "\n")
    build.feed({"stream": "Collecting no\n"})
    build.feed({"stream": "ERROR: no matching distribution\n"})
    fault = _fault(build, "The command '/bin/sh -c pip install no' returned a non-zero code: 1", 1)
    assert fault.reason is Reason.BUILD_FAILED
    assert fault.detail.startswith("Step 2/2 : RUN pip install no failed: ")
    assert fault.detail.endswith("Collecting no\nERROR: no matching distribution")
    assert fault.evidence["exit_code"] == 1
    assert fault.evidence["step"] == 2


def test_a_command_may_say_what_it_likes_and_stays_the_users_side() -> None:
    for words in ("no such host", "no space left on device", "unauthorized", "context canceled"):
        build = _begun("Step 1/2 : FROM x", "Step 2/2 : RUN x")
        fault = _fault(build, f"The command 'echo {words}' returned a non-zero code: 1", 1)
        assert fault.reason is Reason.BUILD_FAILED


@pytest.mark.parametrize(
    ("instruction", "message", "reason"),
    [
        ("FROM x:1", "manifest for x:1 not found: manifest unknown", Reason.IMAGE_NOT_FOUND),
        ("FROM x:1", "pull access denied for x", Reason.IMAGE_DENIED),
        ("FROM x:1", "dial tcp: lookup r: no such host", Reason.REGISTRY_UNAVAILABLE),
        ("COPY --from=x:1 /a /b", "dial tcp: refused", Reason.REGISTRY_UNAVAILABLE),
        ("RUN x", "write /x: no space left on device", Reason.DISK_FULL),
        ("RUN x", "connection error: desc = transport", Reason.ENGINE_UNAVAILABLE),
        ("COPY a /b", "COPY failed: stat a: file does not exist", Reason.BUILD_FAILED),
        ("RUN x", "unable to find user n: no matching entries", Reason.BUILD_FAILED),
    ],
)
def test_other_failures_of_a_step_are_told_apart(
    instruction: str, message: str, reason: Reason
) -> None:
    assert _fault(_begun(f"Step 1/1 : {instruction}"), message).reason is reason


def test_floods_of_output_leave_a_short_fault() -> None:
    build = _begun("Step 1/1 : RUN x")
    for _ in range(1000):
        build.feed({"stream": "y" * 10_000 + "\n"})
    fault = _fault(build, "The command returned a non-zero code: 2", 2)
    assert len(fault.detail) < 4000
    assert len(str(fault.evidence)) < 12_000
