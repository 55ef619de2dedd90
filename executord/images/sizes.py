"""How much of an image only it holds."""

from collections.abc import Iterable

from executord.ports import ImageFacts


def own_bytes(image: ImageFacts, images: Iterable[ImageFacts]) -> int:
    """What would be freed if only this image went; at most that, where a base has lost its name.

    An image is a stack of layers of which the engine tells the total alone: what it shares with
    others is as large as the highest other image that it stands on.
    """
    shared = 0
    for other in images:
        if other.id == image.id or not other.layers:
            continue
        if other.layers[: len(image.layers)] == image.layers:
            return 0
        if image.layers[: len(other.layers)] == other.layers:
            shared = max(shared, other.size_bytes)
    return max(0, image.size_bytes - shared)
