"""Builds an environment's image from its instructions on top of its base."""

import re
from contextlib import aclosing

from executord.core.reasons import Fault, FaultError, Reason
from executord.core.run import Environment
from executord.images.environment import environment_tag
from executord.images.feed import Feed
from executord.ports import BuildSpec, Engine, ImageFacts, Progress

KEY_LABEL = "executord.environment.key"
BASE_LABEL = "executord.environment.base"

_LINE = re.compile(r"(dockerfile parse error line )(\d{1,9})", re.IGNORECASE)
_HEADLINE = re.compile(rb"Step \d+/\d+ : ([^\n]{1,200})")


async def build(
    engine: Engine, feed: Feed, *, key: str, base: ImageFacts, environment: Environment
) -> ImageFacts:
    """The base is named by its id: the build cannot meet another one than the key was made of."""
    feed.output(f"Base image {environment.image} is {base.id}\n".encode())
    spec = BuildSpec(
        tag=environment_tag(key),
        dockerfile=f"FROM {base.id}\n{environment.dockerfile}\n",
        build_args=environment.build_args,
        labels={KEY_LABEL: key, BASE_LABEL: base.id},
    )
    try:
        await _carry_out(engine, feed, spec)
    except FaultError as error:
        raise FaultError(in_the_users_lines(error.fault)) from error
    image = await engine.inspect_image(spec.tag)
    if image is None:
        raise FaultError(
            Fault(Reason.ENGINE_REFUSED, f"Image `{spec.tag}` was built, but is not there.")
        )
    return image


async def _carry_out(engine: Engine, feed: Feed, spec: BuildSpec) -> None:
    step, detail = 0, ""
    async with aclosing(engine.build_image(spec)) as pieces:
        async for piece in pieces:
            feed.output(piece.output)
            if piece.step != step:
                step, detail = piece.step, _headline(piece.output)
                feed.progress(Progress(what="build", step=step, steps=piece.steps, detail=detail))


def _headline(output: bytes) -> str:
    match = _HEADLINE.match(output)
    return match[1].decode("utf-8", "replace") if match else ""


def in_the_users_lines(fault: Fault) -> Fault:
    """Count lines as the user wrote them, without the FROM that was put on top."""

    def one_less(match: re.Match[str]) -> str:
        return f"{match[1]}{max(1, int(match[2]) - 1)}"

    evidence = {
        name: _LINE.sub(one_less, value) if isinstance(value, str) else value
        for name, value in fault.evidence.items()
    }
    return Fault(fault.reason, _LINE.sub(one_less, fault.detail), evidence)
