"""The logical axis names that models use; one table elsewhere maps them to mesh axes."""

PARAMETER_AXES = (
    "layers",
    "embed",
    "heads",
    "kv_heads",
    "head_width",
    "feed_forward",
    "vocabulary",
    "patches",
    "positions",
    "experts",
    "rank",
    "groups",
)
"""Names of parameter axes. `embed` is the model width of encoder, connector and decoder alike; an axis that is never
worth sharding (the pixels of a patch) has no name. `rank` is a low-rank adapter's, on the side without `embed`;
`groups` are those of a quantised kernel's inputs that share a step."""

ACTIVATION_AXES = (
    "rows",
    "images",
    "tokens",
    "embed_activation",
    "heads_activation",
    "kv_heads_activation",
    "feed_forward_activation",
    "vocabulary_activation",
    "experts_activation",
    "rows_of_experts",
)
"""Names of activation axes. `images` is rows times image slots, flattened; `rows_of_experts` are the rows of an array
that the experts split too."""

BatchAxes = tuple[str, str | None]
"""Logical names of the first two axes of activations: what is computed side by side, and the tokens of each."""

ROWS: BatchAxes = ("rows", "tokens")
IMAGES: BatchAxes = ("images", None)
"""Images share no attention, so that what would split a row's tokens splits images too, and leaves each whole."""
