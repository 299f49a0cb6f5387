"""What an image's first bytes say of it: format, size and which way is up, with no pixel decoded."""

import io
from collections.abc import Callable

from PIL import Image

from data_pipelines.transforms.image_error import ImageError

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")

HEADER_BYTES = 1 << 16
"""How much is read of an image of which only the size is asked: the whole of a small one, the header of most others."""

ORIENTATION_TAG = 0x0112

TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation to what turns the picture upright."""

LYING = frozenset({5, 6, 7, 8})
"""EXIF orientations whose width is the height of the upright picture."""


def open_header(data: bytes) -> Image.Image:
    """The image with its format, size and mode known and no pixel decoded.

    Raises:
        ImageError: "unsupported", "corrupt" or "too_large"; see `transforms.image.decode_image`.
    """
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise ImageError("too_large", str(error)) from error
    except Image.UnidentifiedImageError:
        detail = f"{len(data)} bytes starting with {data[:12]!r} are not {', '.join(FORMATS)}"
        raise ImageError("unsupported", detail) from None
    except Exception as error:
        raise ImageError("corrupt", f"{type(error).__name__}: {error}") from error


def upright_size(beginning: bytes, whole: Callable[[], bytes]) -> tuple[int, int]:
    """Height and width in pixels of an image turned upright, as `decode_image` will find it.

    All that a JPEG, BMP or GIF says of its size stands before its pixels. Two files can turn out another way: a PNG may
    say that it lies on its side behind its pixels, and a GIF's first frame may be larger than its canvas. Whoever
    relies on the size must compare it with the decoded image's.

    Args:
        beginning: the first bytes.
        whole: reads all of them, which a header longer than `beginning` and a WebP file need.

    Raises:
        ImageError: the header is damaged, or of no known format.
    """
    try:
        header = open_header(beginning)
    except ImageError:
        header = open_header(whole())
    width, height = header.size
    return (width, height) if _early_orientation(header) in LYING else (height, width)


def orientation(image: Image.Image) -> int:
    """The EXIF orientation (1 to 8) of an image whose pixels are decoded."""
    try:
        return image.getexif().get(ORIENTATION_TAG, 1)
    except Exception:  # Damaged metadata does not make the picture unusable.
        return 1


def _early_orientation(header: Image.Image) -> int:
    """The orientation as far as it is known before the pixels, which a PNG's own method would decode."""
    try:
        return Image.Image.getexif(header).get(ORIENTATION_TAG, 1)
    except Exception:
        return 1
