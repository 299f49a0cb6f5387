"""Documents of MMC4 (Multimodal C4, https://arxiv.org/abs/2304.06939): sentences, each image matched with one."""

from typing import Any, Literal

from data_pipelines.quota import FILTERED, Skip
from data_pipelines.sources.conversation import shown
from data_pipelines.sources.document_files import DocumentFilesConfig
from data_pipelines.sources.documents import NamedImage, Piece
from data_pipelines.sources.filters import FieldFilter, refusal


class Mmc4Config(DocumentFilesConfig):
    """Documents `{text_list, image_info: [{image_name, matched_text_index, matched_sim}]}`.

    An image may stand in the document itself, in base64 (`image_base64` of its `image_info`), as in OpenFlamingo's
    shards. `similarity_matrix` (images x sentences) is asked where an image has no `matched_sim`.
    """

    kind: Literal["mmc4"] = "mmc4"
    similarity: FieldFilter | None = None
    """Bounds on an image's similarity with its sentence, such as `{at_least: 0.24}` (Flamingo's); an image outside is
    left out and counted as `filtered_similarity`."""
    image_stands: Literal["before", "after"] = "before"
    """Where an image stands: before its sentence or after it."""

    def pieces(self, value: dict[str, Any], key: str) -> list[Piece] | Skip:
        texts, described = value.get("text_list"), value.get("image_info") or []
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            return Skip("not_text", key, f"text_list is {shown(texts)}")
        if not isinstance(described, list):
            return Skip("bad_image_info", key, f"image_info is {shown(described)}")
        beside: list[list[Piece]] = [[] for _ in texts]
        for number, info in enumerate(described):
            index = info.get("matched_text_index") if isinstance(info, dict) else None
            if not isinstance(index, int) or not 0 <= index < len(texts):
                return Skip("bad_image_info", key, f"image {number} of {len(texts)} sentences: {shown(info)}")
            image = self._image(info, number, index, value, key)
            if isinstance(image, Skip):
                return image
            beside[index].append(image)
        sentences: list[list[Piece]] = [[text] for text in texts]
        first, second = (beside, sentences) if self.image_stands == "before" else (sentences, beside)
        return [piece for pair in zip(first, second, strict=True) for group in pair for piece in group]

    def _image(self, info: dict[str, Any], number: int, index: int, value: dict[str, Any], key: str) -> Piece | Skip:
        data = info.get("image_base64")
        name = info.get("image_name") or (f"image_info[{number}]" if data is not None else None)
        if not isinstance(name, str) or not isinstance(data, str | None):
            return Skip("bad_image_info", key, f"image {number}: {shown(info)}")
        if self.similarity is None:
            return NamedImage(name, data)
        similarity = info.get("matched_sim")
        if similarity is None:
            similarity = _entry(value.get("similarity_matrix"), number, index)
        unwanted = refusal({"similarity": self.similarity}, {"similarity": similarity}, key)
        if unwanted is not None and not unwanted.cause.startswith(FILTERED):
            return unwanted
        return NamedImage(name, data, unwanted)


def _entry(matrix: Any, row: int, column: int) -> Any:
    """The entry of a matrix, if there is such a matrix."""
    for index in (row, column):
        if not isinstance(matrix, list) or index >= len(matrix):
            return None
        matrix = matrix[index]
    return matrix
