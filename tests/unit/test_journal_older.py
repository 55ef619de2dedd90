"""Runs that an earlier version has journaled: they are read, and go on to mean the same."""

from executord.core.run import Environment, Mount, Run
from executord.core.states import State
from executord.journal.codec import RunRow, TransitionRow, run_of, transition_of
from executord.runs.drafts import AssignmentDraft
from executord.runs.intake import fingerprint

A, B, C, D = (letter * 64 for letter in "abcd")
RUN = (
    '{"assignment":{"id":"r-7","project":"alice/churn","command":["python","train.py"],'
    '"environment":{"image":"python:3","dockerfile":"RUN true","build_args":{"A":"1"},'
    '"pull":"always"},"tier":"small","number":3,"started_by":"alice",'
    f'"revision":"sha256:{A}","env":{{"K":"v"}},"secret_names":["TOKEN"],'
    '"mounts":[{"source":"/data/x","target":"/data","read_only":true},'
    '{"source":"/out","target":"/out","read_only":false}],"run_seconds":60.0,'
    '"keep_on":["failed"],"labels":{"t":"g"},"owner_uid":1000},"state":"Running",'
    '"accepted_at":1000.0,"state_since":1002.5,"transitions":4,"attempt":2,"in_flight":["run"],'
    f'"workspace":{{"volume":"executord-0123abcd-r-7","tree":"sha256:{B}",'
    f'"base_revision":"sha256:{A}","way":"farm"}},"image":{{"id":"sha256:{C}",'
    '"reference":"python:3","key":"k"},"image_phase":null,'
    f'"container":{{"id":"{D}","started_at":1002.75,"boot_id":"boot"}},'
    '"time_limit_reached":false,"time_limit_grace_seconds":10.0,"stop":null,"evidence":null,'
    '"fault":null,"reason":null,"result":null,"usage":null,"costs":[{"stage":"prepare",'
    '"seconds":0.5,"files_from_cache":0,"bytes_from_cache":0,"files_fetched":2,'
    '"bytes_fetched":0,"files_sent":0,"bytes_sent":0,"way":"farm"}],"pending_costs":['
    '{"stage":"start","seconds":0.1,"files_from_cache":0,"bytes_from_cache":0,'
    '"files_fetched":0,"bytes_fetched":0,"files_sent":0,"bytes_sent":0,"way":""}],'
    '"clean":false,"ended_at":null}'
)
TRANSITION = (
    '{"run_id":"r-7","number":4,"time":1002.5,"from_state":"Preparing","to_state":"Running",'
    '"reason":null,"detail":"","costs":[{"stage":"prepare","seconds":0.5,"files_from_cache":0,'
    '"bytes_from_cache":0,"files_fetched":2,"bytes_fetched":0,"files_sent":0,"bytes_sent":0,'
    '"way":"farm"}],"seq":0}'
)


def an_older_run() -> Run:
    row = RunRow(
        id="r-7",
        state="Running",
        project="alice/churn",
        live=1,
        clean=0,
        transitions=4,
        attempt=2,
        accepted_at=1000.0,
        ended_at=None,
        fingerprint="fp",
        crc=14781978,
        body=RUN.encode(),
    )
    return run_of(row)


def test_a_run_of_0_1_0_is_read_with_all_it_holds() -> None:
    run = an_older_run()
    assert run.state is State.RUNNING
    assert run.assignment.mounts == (
        Mount(source="/data/x", target="/data"),
        Mount(source="/out", target="/out", read_only=False),
    )
    assert run.workspace is not None
    assert (run.workspace.way, run.workspace.datasets) == ("farm", ())
    assert run.container is not None
    assert run.container.id == D
    assert [cost.way for cost in run.costs] == ["farm"]


def test_a_transition_of_0_1_0_is_read() -> None:
    row = TransitionRow(
        run_id="r-7",
        number=4,
        time=1002.5,
        from_state="Preparing",
        to_state="Running",
        crc=4033955429,
        body=TRANSITION.encode(),
    )
    transition = transition_of(17, row)
    assert (transition.seq, transition.to_state) == (17, State.RUNNING)
    assert transition.costs[0].files_fetched == 2


def test_a_submit_repeated_after_an_upgrade_is_still_known_as_the_same() -> None:
    """Both digests were made by 0.1.0."""
    environment = Environment(image="i")
    plain = AssignmentDraft(command=("true",), environment=environment, id="r-7")
    mounted = AssignmentDraft(
        command=("true",),
        environment=environment,
        id="r-7",
        mounts=an_older_run().assignment.mounts,
    )
    assert fingerprint(mounted, {"T": "s"}, b"k") == (
        "a24ab4785b39ea2ed2f9b00bfb3e4908ca6f580989f1347da94563561e3790bf"
    )
    assert fingerprint(plain, {}, b"k") == (
        "0361fb2cd445c8ea910369282f5b1b5734fef0b7197de80ac0733c1b1850c59a"
    )


def test_another_revision_at_the_same_place_is_another_request() -> None:
    def mark(revision: str) -> str:
        mount = Mount(source="", target="/data", revision=revision)
        draft = AssignmentDraft(
            command=("true",), environment=Environment(image="i"), mounts=(mount,)
        )
        return fingerprint(draft, {}, b"k")

    assert mark(f"sha256:{A}") != mark(f"sha256:{B}")
