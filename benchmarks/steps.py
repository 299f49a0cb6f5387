"""Training steps on this machine's CPU beside PyTorch's of the same shapes; prints one JSON line a step.

    python benchmarks/steps.py [--steps llava_align llava_instruct llava_all blip2 nano] [--dtype float32] [--repeats 5]

Each step is forward, backward and AdamW on four rows of random tokens with an image each, with random weights: of
transformers' classes in PyTorch, and of a run's own compiled step here. Each side runs in a process of its own, both
with as many threads as `--threads` says and with huge pages for malloc; sides take turns, `--rounds` times:

    seconds        median of a side's steps after two to warm up
    cpu_seconds    of all threads, median
    megabytes      largest resident memory of the process
    ratio          seconds of this project's step / of PyTorch's

PyTorch and transformers are to be installed beside the project.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

ROWS = 4
VOCABULARY = 49152
LLAMA = {"width": 576, "layers": 30, "heads": 9, "kv_heads": 3, "feed_forward_width": 1536}


@dataclass(frozen=True)
class StepShape:
    """One step, as both sides build it."""

    kind: str
    """llava, blip2 or nano: which of transformers' classes is the peer."""
    encoder: str
    """Preset of the vision encoder."""
    image_tokens: int
    text_tokens: int
    trainable: tuple[str, ...]
    """Patterns of what trains; a part of transformers' model trains if any of them begins with its name here."""


STEPS = {
    "llava_align": StepShape("llava", "clip_vit_b32", 49, 79, ("connector/**",)),
    "llava_instruct": StepShape("llava", "clip_vit_b32", 49, 79, ("connector/**", "decoder/**")),
    "llava_all": StepShape("llava", "clip_vit_b32", 49, 79, ("**",)),
    "blip2": StepShape("blip2", "clip_vit_b32", 32, 96, ("connector/**",)),
    "nano": StepShape("nano", "siglip_base_16_224", 49, 128, ("**",)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", nargs="+", choices=list(STEPS), default=list(STEPS))
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--repeats", type=int, default=5, help="steps that are timed in each process")
    parser.add_argument("--rounds", type=int, default=2, help="processes of each side")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--side", choices=list(SIDES), help="measure one side in this process")
    options = parser.parse_args()
    if options.side is not None:
        print(json.dumps(measured(SIDES[options.side](STEPS[options.steps[0]], options.dtype), options.repeats)))
        return
    for name in options.steps:
        print(json.dumps({"step": name, "dtype": options.dtype, **compared(name, options)}), flush=True)


def compared(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Both sides of one step, and their ratio."""
    rounds = [{side: in_a_process(side, name, options) for side in SIDES} for _ in range(options.rounds)]
    sides = {
        side: {what: round(statistics.median(each[side][what] for each in rounds), 3) for what in rounds[0][side]}
        for side in SIDES
    }
    return {**sides, "ratio": round(sides["ours"]["seconds"] / sides["torch"]["seconds"], 3)}


def in_a_process(side: str, name: str, options: argparse.Namespace) -> dict[str, float]:
    """What a process that measures one side prints."""
    values = {"steps": name, "dtype": options.dtype, "repeats": options.repeats, "side": side}
    command = [sys.executable, __file__, *(word for key, value in values.items() for word in (f"--{key}", str(value)))]
    threads = str(options.threads)
    environment = os.environ | {
        "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
        "OMP_NUM_THREADS": threads,
        "JAX_PLATFORMS": "cpu",
        "TOKENIZERS_PARALLELISM": "false",
    }
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def measured(step: Callable[[], float], repeats: int) -> dict[str, float]:
    """Times a step that returns its loss when it is done."""
    for _ in range(2):
        step()
    wall, cpu = [], []
    for _ in range(repeats):
        began, burnt = time.perf_counter(), time.process_time()
        loss = step()
        wall.append(time.perf_counter() - began)
        cpu.append(time.process_time() - burnt)
        assert loss == loss, "the loss is no number"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": statistics.median(wall), "cpu_seconds": statistics.median(cpu), "megabytes": peak}


def torch_step(shape: StepShape, dtype: str) -> Callable[[], float]:
    """The step of transformers' model."""
    import torch

    torch.manual_seed(0)
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    with torch.device("cpu"):
        model, image_token = torch_model(shape)
    model = model.to(getattr(torch, dtype)).train()
    train_parts(model, shape)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4)
    tokens = torch.randint(3, VOCABULARY - 8, (ROWS, shape.image_tokens + shape.text_tokens))
    tokens[:, : shape.image_tokens] = image_token
    labels = tokens.clone()
    labels[:, : shape.image_tokens] = -100
    pixels = torch.randn(ROWS, 3, 224, 224, dtype=getattr(torch, dtype))
    if shape.kind == "nano":
        pixels = pixels[:, None]
    inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "pixel_values": pixels, "labels": labels}

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        loss = model(**inputs, use_cache=False).loss
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return step


def train_parts(model: Any, shape: StepShape) -> None:
    """Freezes what the shape does not train: what is neither encoder nor connector is the decoder."""
    connector = ("connector", "projector", "qformer", "query", "language_projection")
    parts = {"encoder": ("vision",), "connector": connector}
    for name, parameter in model.named_parameters():
        named = (part for part, words in parts.items() if any(word in name for word in words))
        part = next(named, "decoder")
        parameter.requires_grad_(any(pattern in ("**", f"{part}/**") for pattern in shape.trainable))


def torch_model(shape: StepShape) -> tuple[Any, int]:
    """transformers' model with random weights, and the id that stands for an image's tokens."""
    import transformers

    image_token = VOCABULARY - 1
    llama = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=LLAMA["width"],
        num_hidden_layers=LLAMA["layers"],
        num_attention_heads=LLAMA["heads"],
        num_key_value_heads=LLAMA["kv_heads"],
        intermediate_size=LLAMA["feed_forward_width"],
        tie_word_embeddings=True,
        max_position_embeddings=8192,
    )
    tower = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
    if shape.kind == "llava":
        vision = transformers.CLIPVisionConfig(**tower, patch_size=32, image_size=224)
        config = transformers.LlavaConfig(vision_config=vision, text_config=llama, image_token_index=image_token)
        return transformers.LlavaForConditionalGeneration(config), image_token
    if shape.kind == "blip2":
        vision = transformers.Blip2VisionConfig(**tower, patch_size=32, image_size=224)
        config = transformers.Blip2Config(
            vision_config=vision,
            qformer_config={"vocab_size": 30522, "encoder_hidden_size": 768},
            text_config=llama,
            image_token_index=image_token,
        )
        return transformers.Blip2ForConditionalGeneration(config), image_token
    config = transformers.Idefics3Config(
        vision_config={**tower, "patch_size": 16, "image_size": 224},
        text_config=llama,
        image_token_id=image_token,
        scale_factor=2,
        tie_word_embeddings=True,
    )
    return transformers.Idefics3ForConditionalGeneration(config), image_token


def our_step(shape: StepShape, dtype: str) -> Callable[[], float]:
    """The step that a run of these sizes compiles."""
    import tempfile
    from pathlib import Path

    import jax
    from rich.console import Console

    from mllm_jax.checkpoint.checkpointer import CheckpointConfig
    from mllm_jax.models.layers.precision import PrecisionConfig
    from mllm_jax.models.parameters import init_parameters
    from mllm_jax.parallel.mesh import MeshConfig, make_mesh
    from mllm_jax.parallel.rules import use_mesh
    from mllm_jax.training.ingredients import Ingredients
    from mllm_jax.training.metrics import LoggingConfig
    from mllm_jax.training.plan import Run, plan_stages
    from mllm_jax.training.stage_run import compiled_step
    from mllm_jax.training.stages import StageConfig
    from mllm_jax.training.state import create_state

    model = our_model(shape)
    stage_config = StageConfig.model_validate(
        {
            "name": "timed",
            "mixture": {"random": 1.0},
            "rows": ROWS,
            "row_length": shape.image_tokens + shape.text_tokens,
            "images_per_row": 1,
            "steps": 1000,
            "trainable": shape.trainable,
        }
    )

    def never(request: Any) -> Any:
        raise AssertionError("a step alone is timed: its parameters are random, and so is its batch")

    precision = PrecisionConfig(parameters=dtype, frozen=dtype, compute=dtype)
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    with tempfile.TemporaryDirectory() as folder:
        ingredients = Ingredients(model, precision, initial_parameters=never, open_feed=never)
        run = Run(Path(folder), ingredients, mesh, CheckpointConfig(), LoggingConfig(), Console(quiet=True))
        [stage] = plan_stages([stage_config], run)
    parameters = init_parameters(model, jax.random.key(0), precision.parameter_dtype)
    state = create_state(parameters, stage.abstract, stage.optimizer)
    del parameters
    with use_mesh(mesh):
        compiled = compiled_step(stage, run)
    batch = our_batch(shape)

    def step() -> float:
        nonlocal state
        with use_mesh(mesh):
            state, metrics = compiled(state, batch)
        return float(metrics["loss"])

    return step


def our_model(shape: StepShape) -> Any:
    """The same architecture as transformers' model."""
    from mllm_jax.models.connectors.mlp import MLPConfig
    from mllm_jax.models.connectors.pixel_shuffle import PixelShuffleConfig
    from mllm_jax.models.connectors.q_former import QFormerConfig
    from mllm_jax.models.multimodal import MultimodalConfig
    from mllm_jax.models.presets import DECODERS, ENCODERS
    from mllm_jax.models.vit import FeatureConfig

    encoder, connector = ENCODERS[shape.encoder], MLPConfig()
    if shape.kind == "blip2":
        encoder = encoder.model_copy(
            update={"features": FeatureConfig(layer=-1, keep_class_token=True, post_norm=True)}
        )
        connector = QFormerConfig()
    elif shape.kind == "nano":
        encoder = encoder.model_copy(update={"features": FeatureConfig(layer=-1, post_norm=True)})
        connector = PixelShuffleConfig(factor=2, depth=1, bias=False)
    return MultimodalConfig(encoder=encoder, connector=connector, decoder=DECODERS["smollm2_135m"])


def our_batch(shape: StepShape) -> Any:
    """Rows of one segment: an image, then text that is supervised."""
    import numpy as np

    from data_pipelines.batch import Batch

    random = np.random.default_rng(0)
    length = shape.image_tokens + shape.text_tokens
    tokens = random.integers(3, VOCABULARY - 8, (ROWS, length), np.int32)
    place = np.broadcast_to(np.arange(length, dtype=np.int32), (ROWS, length))
    text = place >= shape.image_tokens
    supervised = (place >= shape.image_tokens - 1) & (place < length - 1)
    return Batch(
        tokens=tokens,
        targets=np.roll(tokens, -1, axis=1),
        loss_weights=supervised.astype(np.float32),
        segment_ids=np.ones((ROWS, length), np.int32),
        positions=place,
        images=random.integers(0, 256, (ROWS, 1, 224, 224, 3), np.uint8),
        image_mask=np.ones((ROWS, 1), np.bool_),
        image_index=np.where(text, -1, place).astype(np.int32),
        answer_mask=text,
    )


SIDES: dict[str, Callable[[StepShape, str], Callable[[], float]]] = {"ours": our_step, "torch": torch_step}

if __name__ == "__main__":
    main()
