"""What an interleaved document becomes."""

from data_pipelines.record import Record, TextPart
from data_pipelines.storage import Storage


def seen(record: Record) -> list[str | bytes]:
    """The texts, and the bytes of the images, of a document in their order."""
    (turn,) = record.turns
    return [part.text if isinstance(part, TextPart) else Storage().read_image(part.source) for part in turn.parts]
