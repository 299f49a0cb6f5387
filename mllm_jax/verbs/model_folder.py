"""The MODEL that a verb names."""

WHAT_IS_MODEL = "a run directory, an imported folder or a Hugging Face folder"


def load(path: str, template: str | None = None):
    """Reads the model; a template given by name takes the place of its own.

    Raises:
        ValueError: there is no such template, or no model.
    """
    from data_pipelines.transforms.templates import TEMPLATES
    from mllm_jax.interop.model_folder import load_model

    if template is not None and template not in TEMPLATES:
        raise ValueError(f"there is no chat template {template!r}; templates: {', '.join(sorted(TEMPLATES))}")
    return load_model(path, chat_template=TEMPLATES[template] if template else None)
