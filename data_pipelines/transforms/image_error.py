"""The one exception that a decoder raises for an image that can never be decoded."""


class ImageError(ValueError):
    """An image whose bytes cannot become pixels; a deterministic function of the bytes, so it may be skipped.

    `cause` is one word for counting ("corrupt", "too_large", "unsupported"); `detail` says what was found.
    """

    def __init__(self, cause: str, detail: str = "") -> None:
        super().__init__(f"{cause}: {detail}" if detail else cause)
        self.cause = cause
        self.detail = detail
