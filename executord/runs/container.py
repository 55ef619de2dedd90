"""What container a run gets: its name, its environment, its limits and its mounts."""

import hashlib
from collections.abc import Mapping

from executord.core.reasons import Fault, FaultError, Reason
from executord.core.run import Run
from executord.ports import BindMount, ContainerSpec, VolumeMount
from executord.runs.context import RunRules, Tools
from executord.runs.host_mounts import SECRETS_TARGET, still_allowed

INSTANCE_LABEL = "executord.instance"
RUN_LABEL = "executord.run"
SPEC_LABEL = "executord.spec"


def container_name(rules: RunRules, run_id: str) -> str:
    """One name a run on this node: what exists already cannot be made a second time."""
    return f"executord-{rules.instance}-{run_id}"


def container_of(run: Run, rules: RunRules) -> str:
    """How the engine is asked for it: by its id once that is known, for a name can be changed."""
    return run.container.id if run.container else container_name(rules, run.id)


def instance_labels(rules: RunRules) -> Mapping[str, str]:
    return {INSTANCE_LABEL: rules.instance}


def tier_gone(tier: str) -> Fault:
    return Fault(Reason.TIER_GONE, f"There is no tier `{tier}` any more.")


async def container_spec(run: Run, tools: Tools) -> ContainerSpec:
    """FaultError SECRETS_LOST, TIER_GONE where a restart left the run without what it needs."""
    rules = tools.rules
    assignment = run.assignment
    assert run.image is not None
    assert run.workspace is not None
    tier = rules.tiers.get(assignment.tier)
    if tier is None:
        raise FaultError(tier_gone(assignment.tier))
    binds = [
        BindMount(source=mount.source, target=mount.target, read_only=mount.read_only)
        for mount in await still_allowed(assignment.mounts, rules)
    ]
    datasets = run.workspace.datasets
    binds += [
        BindMount(source=dataset.source, target=dataset.target, read_only=True)
        for dataset in datasets
        if dataset.source
    ]
    if assignment.secret_names:
        source = await tools.secrets.path_of(run.id, assignment.secret_names)
        binds.append(BindMount(source=str(source), target=SECRETS_TARGET, read_only=True))
    return ContainerSpec(
        name=container_name(rules, run.id),
        image=run.image.id,
        command=assignment.command,
        env=environment_of(run, rules),
        working_dir=rules.working_dir,
        volume=run.workspace.volume,
        user=f"{rules.user[0]}:{rules.user[1]}",
        network=rules.network,
        cpus=tier.cpus,
        memory_bytes=tier.memory_bytes,
        pids_limit=rules.pids_limit,
        gpus=tier.gpus,
        binds=tuple(binds),
        volumes=tuple(
            VolumeMount(volume=dataset.volume, target=dataset.target)
            for dataset in datasets
            if dataset.volume
        ),
        labels={
            **instance_labels(rules),
            RUN_LABEL: run.id,
            SPEC_LABEL: _spec_hash(run),
        },
        cgroup_parent=tools.meters.cgroup_parent(run.id),
        log_max_bytes=rules.console_limit_bytes,
    )


def environment_of(run: Run, rules: RunRules) -> dict[str, str]:
    """What the user's code finds in its environment; what it asks for itself comes last."""
    assignment = run.assignment
    owner, _, name = assignment.project.rpartition("/")
    facts = {
        "RUN_ID": assignment.id,
        "RUN_NUMBER": str(assignment.number),
        "PROJECT_OWNER": owner,
        "PROJECT_NAME": name,
        "STARTING_USERNAME": assignment.started_by,
        "HARDWARE_TIER_ID": assignment.tier,
        "WORKING_DIR": rules.working_dir,
    }
    prefixed = {
        f"{p}_{key}": value for key, value in facts.items() for p in ("DOMINO", "EXECUTORD")
    }
    return {"HOME": rules.working_dir, **prefixed, **assignment.env}


def _spec_hash(run: Run) -> str:
    assert run.image is not None
    parts = (run.id, run.image.id, *run.assignment.command)
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogateescape")).hexdigest()[:16]
