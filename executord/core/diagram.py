"""The state diagram of ARCHITECTURE.md, drawn from the table of transitions."""

from executord.core.states import MAY_GO_TO


def mermaid() -> str:
    """A Mermaid state diagram, one line a transition, in the table's order."""
    lines = ["stateDiagram-v2", "    [*] --> Queued"]
    for state, targets in MAY_GO_TO.items():
        lines += [f"    {state} --> {target}" for target in targets or ("[*]",)]
    return "\n".join(lines)
