"""What a chat template writes between the tiles of a split image, as tokens."""

from collections.abc import Sequence

from data_pipelines.tokenizer import Tokenizer
from data_pipelines.transforms.separate_tiles import TileMarks
from data_pipelines.transforms.splitting import SplittingConfig
from data_pipelines.transforms.templates import ChatTemplate, ImageFormat, Piece, Special
from data_pipelines.transforms.tiling import TilingConfig


def marked(
    template: ChatTemplate, tiling: TilingConfig | None, tokenizer: Tokenizer
) -> tuple[ChatTemplate, TileMarks | None]:
    """The template as images of this tiling are rendered with it, and the tokens between their tiles.

    Raises:
        ValueError: the tokenizer lacks a special token, or the exported one would read the marks as other tokens.
    """
    if not isinstance(tiling, SplittingConfig) or template.image.tiles is None:
        return template, None
    names = tile_tokens(template, tiling)
    missing = [name for name in names if not tokenizer.has_special(name)]
    if missing:
        raise ValueError(
            f"chat template {template.name!r} needs the special tokens {', '.join(missing)} between the tiles of an "
            "image, which the tokenizer does not have. Use another template or tiling, or add the tokens to it."
        )
    before, whole = _pieces(template.image, tiling.longest_side)
    marks = TileMarks({place: _ids(pieces, tokenizer) for place, pieces in before.items()}, _ids(whole, tokenizer))
    around = template.image.model_copy(update={"before": ()})  # It stands in the marks of the whole image.
    return template.model_copy(update={"image": around}), marks


def tile_tokens(template: ChatTemplate, tiling: TilingConfig | None) -> tuple[str, ...]:
    """The names of the special tokens between the tiles of an image; empty where nothing stands there."""
    if not isinstance(tiling, SplittingConfig) or template.image.tiles is None:
        return ()
    before, whole = _pieces(template.image, tiling.longest_side)
    pieces = [piece for each in (*before.values(), whole) for piece in each if isinstance(piece, Special)]
    return tuple(dict.fromkeys(piece.token for piece in pieces if piece.token))


def _pieces(image: ImageFormat, side: int) -> tuple[dict[tuple[int, int], list[Piece]], list[Piece]]:
    """What stands before the tile of a row and a column, and before the one that shows the whole image."""
    tiles = image.tiles
    assert tiles is not None
    places = [(row, column) for row in range(side) for column in range(side)]
    before = {
        (row, column): [
            *([tiles.row_end] if row and not column else []),
            *(_numbered(piece, row + 1, column + 1) for piece in tiles.before),
        ]
        for row, column in places
    }
    return before, [tiles.row_end + tiles.grid_end, *image.before]


def _numbered(piece: Piece, row: int, column: int) -> Piece:
    if isinstance(piece, str) or piece.token is None:
        return piece
    return Special(token=piece.token.replace("{row}", str(row)).replace("{column}", str(column)))


def _ids(pieces: Sequence[Piece], tokenizer: Tokenizer) -> tuple[int, ...]:
    ids: list[int] = []
    text = tokenizer.image_token
    for piece in pieces:
        name = piece if isinstance(piece, str) else piece.token or ""
        ids += tokenizer.encode(piece, start=False) if isinstance(piece, str) else [tokenizer.special_id(name)]
        text += name
    read = tokenizer.encode_marked(text + tokenizer.image_token)[1:-1]
    if read != ids:
        raise ValueError(
            f"what stands between the tiles of an image, {text!r}, is rendered as {ids} but read back as {read}. A "
            "tokenizer that changes text beside special tokens cannot be used with this template."
        )
    return tuple(ids)
