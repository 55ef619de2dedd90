"""Fetches an image from its registry."""

from contextlib import aclosing
from dataclasses import dataclass

from executord.core.reasons import Fault, FaultError, Reason
from executord.images.feed import Feed
from executord.ports import Engine, ImageFacts


@dataclass(frozen=True, slots=True, kw_only=True)
class Pulled:
    image: ImageFacts
    bytes_fetched: int


async def pull(engine: Engine, feed: Feed, reference: str) -> Pulled:
    fetched = 0
    async with aclosing(engine.pull_image(reference)) as progresses:
        async for progress in progresses:
            fetched = max(fetched, progress.bytes_done)
            feed.progress(progress)
    image = await engine.inspect_image(reference)
    if image is None:
        raise FaultError(
            Fault(
                Reason.ENGINE_REFUSED,
                f"Image `{reference}` was fetched, but the engine does not have it.",
            )
        )
    return Pulled(image=image, bytes_fetched=fetched)
