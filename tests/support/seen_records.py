"""What of a record stays the same wherever it stands."""

from data_pipelines.record import ImagePart


def seen(record, read):
    """A record without its key, and with the bytes of its images for their places."""
    turns = [
        (turn.role, turn.learn, [read(part.source) if isinstance(part, ImagePart) else part for part in turn.parts])
        for turn in (*record.turns, *filter(None, [record.rejected]))
    ]
    return turns, record.rejected is None, record.reference
