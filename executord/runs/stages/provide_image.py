"""Find, fetch or build the image of the run's environment."""

from executord.core.messages import ImagePhaseBegun, ImageReady
from executord.core.run import ImagePhase
from executord.runs.context import RunContext, Tools


async def provide_image(context: RunContext, tools: Tools) -> ImageReady:
    run = context.run()

    async def phase_begun(phase: ImagePhase) -> None:
        await context.report(
            ImagePhaseBegun(at=tools.clock.now(), attempt=run.attempt, phase=phase)
        )

    async def output(data: bytes) -> None:
        await tools.consoles.append(run.id, "build", data)

    provided = await tools.images.provide(
        run.id,
        run.assignment.environment,
        on_phase=phase_begun,
        on_output=output,
        on_progress=context.on_progress,
    )
    return ImageReady(
        at=tools.clock.now(), attempt=run.attempt, image=provided.image, costs=provided.costs
    )
