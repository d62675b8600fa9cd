"""The files of weights that others publish, with random weights: their key names and shapes, by hand.

The networks are narrow where their structure allows it (`narrow`), so that a file is made in a moment.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import encoders
from encoders.ast import N_CLASSES, ASTTags
from encoders.efficientat import EfficientATTags
from model_export.__main__ import main

SMALL_CHANNELS = (4, 6, 8, 10, 12, 16)  # of CNN14


def narrow(patch: pytest.MonkeyPatch) -> None:
    """VGGish, CNN14 and MSM-MAE with few channels or blocks: their structure is that of the large ones."""
    patch.setattr("encoders.vggish.CHANNELS", ((4,), (6,), (8, 8), (10, 10)))
    patch.setattr("encoders.vggish.FC", (24, 20, 12))
    patch.setattr("encoders.cnn14.CHANNELS", SMALL_CHANNELS)
    patch.setattr("encoders.msm_mae.DEPTH", 2)


def tensors(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Weights by which a signal neither dies nor explodes; variances are positive."""
    torch.manual_seed(0)
    return {key: _tensor(key, shape) for key, shape in shapes.items()}


def _tensor(key: str, shape: tuple[int, ...]) -> Tensor:
    if not shape:
        return torch.tensor(7)  # batches counted
    if len(shape) > 1:
        return torch.randn(shape) * (2 / torch.Size(shape[1:]).numel()) ** 0.5
    if key.endswith(("running_var", ".weight")):
        return 0.5 + torch.rand(shape)
    return 0.1 * torch.randn(shape)


def vggish_file(fc: str = "fc") -> dict[str, Tensor]:
    """The 18 entries, of the narrow network."""
    shapes: dict[str, tuple[int, ...]] = {}
    channels = [1, 4, 6, 8, 8, 10, 10]
    for number, (a, b) in zip((0, 3, 6, 8, 11, 13), pairwise(channels), strict=True):
        shapes |= {f"features.{number}.weight": (b, a, 3, 3), f"features.{number}.bias": (b,)}
    for number, a, b in ((0, 240, 24), (2, 24, 20), (4, 20, 12)):
        shapes |= {f"{fc}.{number}.weight": (b, a), f"{fc}.{number}.bias": (b,)}
    assert len(shapes) == 18
    return tensors(shapes)


def cnn14_file(window: int = 512, *, last: int = 2048) -> dict[str, Any]:
    """The 84 entries beside the training's notes. last: channels of the last block, of the narrow network."""
    shapes: dict[str, tuple[int, ...]] = {
        "spectrogram_extractor.stft.conv_real.weight": (window // 2 + 1, 1, window),
        "spectrogram_extractor.stft.conv_imag.weight": (window // 2 + 1, 1, window),
        "logmel_extractor.melW": (window // 2 + 1, 64),
        **batch_norm_shapes("bn0", 64),
        "fc1.weight": (last, last),
        "fc1.bias": (last,),
        "fc_audioset.weight": (527, last),
        "fc_audioset.bias": (527,),
    }
    channels = (1, *SMALL_CHANNELS[:5], last)
    for k, (a, b) in enumerate(pairwise(channels), start=1):
        shapes |= {f"conv_block{k}.conv1.weight": (b, a, 3, 3), f"conv_block{k}.conv2.weight": (b, b, 3, 3)}
        shapes |= batch_norm_shapes(f"conv_block{k}.bn1", b) | batch_norm_shapes(f"conv_block{k}.bn2", b)
    assert len(shapes) == 84
    return {"iteration": 500_000, "model": tensors(shapes), "sampler": {}}


def vit_block(name: str, *, qkv_bias: bool = True) -> dict[str, tuple[int, ...]]:
    layers = {
        "attn.proj": (768, 768),
        "mlp.fc1": (3072, 768),
        "mlp.fc2": (768, 3072),
        "attn.qkv": (2304, 768),
    }
    shapes: dict[str, tuple[int, ...]] = {f"{name}.{layer}.weight": shape for layer, shape in layers.items()}
    shapes |= {f"{name}.{layer}.bias": shape[:1] for layer, shape in layers.items()}
    shapes |= {f"{name}.{norm}.{kind}": (768,) for norm in ("norm1", "norm2") for kind in ("weight", "bias")}
    if not qkv_bias:
        del shapes[f"{name}.attn.qkv.bias"]
        shapes |= {f"{name}.attn.q_bias": (768,), f"{name}.attn.v_bias": (768,)}
    return shapes


def ast_shapes(n_blocks: int = 12) -> dict[str, tuple[int, ...]]:
    """The 159 entries, without their `module.`."""
    shapes: dict[str, tuple[int, ...]] = {
        "v.cls_token": (1, 1, 768),
        "v.dist_token": (1, 1, 768),
        "v.pos_embed": (1, 1214, 768),
        "v.patch_embed.proj.weight": (768, 1, 16, 16),
        "v.patch_embed.proj.bias": (768,),
        "v.norm.weight": (768,),
        "v.norm.bias": (768,),
        "v.head.weight": (1000, 768),
        "v.head.bias": (1000,),
        "v.head_dist.weight": (1000, 768),
        "v.head_dist.bias": (1000,),
        "mlp_head.0.weight": (768,),
        "mlp_head.0.bias": (768,),
        "mlp_head.1.weight": (527, 768),
        "mlp_head.1.bias": (527,),
    }
    for i in range(n_blocks):
        shapes |= vit_block(f"v.blocks.{i}")
    return shapes


def hugging_face(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """AST's state dict under the names of the port, query, key and value apart."""
    port = {
        "v.cls_token": "embeddings.cls_token",
        "v.dist_token": "embeddings.distillation_token",
        "v.pos_embed": "embeddings.position_embeddings",
        "v.patch_embed.proj": "embeddings.patch_embeddings.projection",
        "v.norm": "layernorm",
    }
    parts = {
        "norm1": "layernorm_before",
        "norm2": "layernorm_after",
        "attn.proj": "attention.output.dense",
        "mlp.fc1": "intermediate.dense",
        "mlp.fc2": "output.dense",
    }
    renamed: dict[str, Tensor] = {}
    for key, value in state.items():
        stem, _, kind = key.rpartition(".")
        if key.startswith("v.head"):
            continue
        if key.startswith("mlp_head.0."):
            renamed[f"classifier.layernorm.{kind}"] = value
        elif key.startswith("mlp_head.1."):
            renamed[f"classifier.dense.{kind}"] = value
        elif key.startswith("v.blocks."):
            number, part = stem.removeprefix("v.blocks.").split(".", 1)
            layer = f"audio_spectrogram_transformer.encoder.layer.{number}"
            if part == "attn.qkv":
                for name, third in zip(("query", "key", "value"), value.chunk(3), strict=True):
                    renamed[f"{layer}.attention.attention.{name}.{kind}"] = third
            else:
                renamed[f"{layer}.{parts[part]}.{kind}"] = value
        else:
            name = port[key] if key in port else f"{port[stem]}.{kind}"
            renamed[f"audio_spectrogram_transformer.{name}"] = value
    return renamed


def msm_mae_file(columns: int = 13) -> dict[str, Any]:
    """Of the narrow network's two blocks, with the beginning of a decoder."""
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, 768),
        "mask_token": (1, 1, 384),
        "pos_embed": (1, 1 + 5 * columns, 768),
        "patch_embed.proj.weight": (768, 1, 16, 16),
        "patch_embed.proj.bias": (768,),
        "norm.weight": (768,),
        "norm.bias": (768,),
        "decoder_embed.weight": (384, 768),
        "decoder_blocks.0.norm1.weight": (384,),
        "decoder_pred.bias": (256,),
    }
    for i in range(2):
        shapes |= vit_block(f"blocks.{i}", qkv_bias=False)
    return {"model": tensors(shapes), "epoch": 99}


def efficientat_shapes(width: float = 0.2) -> dict[str, tuple[int, ...]]:
    """The 312 entries of mn04 (0.4), or of a narrower network of the same structure (0.2)."""
    channels, blocks = EFFICIENTAT[width]
    shapes: dict[str, tuple[int, ...]] = {"features.0.0.weight": (channels[0], 1, 3, 3)}
    shapes |= batch_norm_shapes("features.0.1", channels[0])
    for number, (kernel, expanded, squeezed) in enumerate(blocks, start=1):
        in_channels, out_channels = channels[number - 1], channels[number]
        convolutions = [(expanded, 1, kernel, kernel), (out_channels, expanded, 1, 1)]
        if number > 1:
            convolutions.insert(0, (expanded, in_channels, 1, 1))
        places = list(range(len(convolutions)))
        if squeezed:
            places[-1] += 1
            layers = f"features.{number}.block.2.conc_se_layers.0"
            shapes |= {f"{layers}.fc1.weight": (squeezed, expanded), f"{layers}.fc1.bias": (squeezed,)}
            shapes |= {f"{layers}.fc2.weight": (expanded, squeezed), f"{layers}.fc2.bias": (expanded,)}
        for place, shape in zip(places, convolutions, strict=True):
            shapes[f"features.{number}.block.{place}.0.weight"] = shape
            shapes |= batch_norm_shapes(f"features.{number}.block.{place}.1", shape[0])
    last, hidden = channels[16], {0.2: 256, 0.4: 512}[width]
    shapes["features.16.0.weight"] = (last, channels[15], 1, 1)
    shapes |= batch_norm_shapes("features.16.1", last)
    shapes |= {"classifier.2.weight": (hidden, last), "classifier.2.bias": (hidden,)}
    shapes |= {"classifier.5.weight": (527, hidden), "classifier.5.bias": (527,)}
    assert len(shapes) == 312
    return shapes


# Of each width the channels of stem, blocks and last convolution; of each block its kernel, the channels that
# it expands to, and those that its squeeze-excite has in between.
EFFICIENTAT: dict[float, tuple[list[int], list[tuple[int, int, int]]]] = {
    0.2: (
        [8, 8, 8, 8, 8, 8, 8, 16, 16, 16, 16, 24, 24, 32, 32, 32, 192],
        [
            (3, 8, 0), (3, 16, 0), (3, 16, 0), (5, 16, 8), (5, 24, 8), (5, 24, 8), (3, 48, 0), (3, 40, 0),
            (3, 40, 0), (3, 40, 0), (3, 96, 24), (3, 136, 32), (5, 136, 32), (5, 192, 48), (5, 192, 48),
        ],
    ),
    0.4: (
        [8, 8, 16, 16, 16, 16, 16, 32, 32, 32, 32, 48, 48, 64, 64, 64, 384],
        [
            (3, 8, 0), (3, 24, 0), (3, 32, 0), (5, 32, 8), (5, 48, 16), (5, 48, 16), (3, 96, 0), (3, 80, 0),
            (3, 72, 0), (3, 72, 0), (3, 192, 48), (3, 272, 72), (5, 272, 72), (5, 384, 96), (5, 384, 96),
        ],
    ),
}  # fmt: skip


def byola_shapes(n_blocks: int, fc: tuple[tuple[int, int], tuple[int, int]]) -> dict[str, tuple[int, ...]]:
    """The names and shapes of a published file of BYOL-A; `fc`: (outputs, inputs) of its linear layers."""
    shapes: dict[str, tuple[int, ...]] = {}
    for block in range(n_blocks):
        convolution, normalisation = f"features.{4 * block}", f"features.{4 * block + 1}"
        shapes |= {f"{convolution}.weight": (64, 64 if block else 1, 3, 3), f"{convolution}.bias": (64,)}
        shapes |= batch_norm_shapes(normalisation, 64)
    for layer, shape in zip((0, 3), fc, strict=True):
        shapes |= {f"fc.{layer}.weight": shape, f"fc.{layer}.bias": shape[:1]}
    return shapes


def batch_norm_shapes(name: str, channels: int) -> dict[str, tuple[int, ...]]:
    shapes = {f"{name}.{key}": (channels,) for key in ("weight", "bias", "running_mean", "running_var")}
    return {**shapes, f"{name}.num_batches_tracked": ()}


@dataclass(frozen=True)
class Case:
    """One encoder as it is imported. words: of the command; file: what is saved as its weights."""

    encoder: str
    words: tuple[str, ...]
    file: Callable[[], Any] | None


def ast_file() -> dict[str, Tensor]:
    """With two blocks, as its authors save it."""
    return {f"module.{key}": value for key, value in tensors(ast_shapes(n_blocks=2)).items()}


CALIBRATION = ("--calibration", "tests/fixtures")

CASES = {
    "vggish": Case("vggish", (), vggish_file),
    "vggish-10-15": Case("vggish", ("--fuse", "10,15", "--int8", *CALIBRATION), vggish_file),
    "cnn14": Case("cnn14", ("--head", "--float16"), lambda: cnn14_file(last=SMALL_CHANNELS[-1])),
    "cnn14-3-6": Case("cnn14", ("--fuse", "3,6"), lambda: cnn14_file(last=SMALL_CHANNELS[-1])),
    "ast": Case("ast", ("--head", "--int8", *CALIBRATION), ast_file),
    "efficientat": Case("efficientat", ("--head", "--float16"), lambda: tensors(efficientat_shapes())),
    "efficientat-9-15": Case(
        "efficientat", ("--fuse", "9,15", "--batching", "padded"), lambda: tensors(efficientat_shapes())
    ),
    "msm-mae": Case("msm-mae", ("--mean", "-7", "--std", "4", "--float16"), msm_mae_file),
    "logmel-stats": Case("logmel-stats", (), None),
    "byola-2022-2-4": Case(
        "byola-2022",
        ("--fuse", "2,4", "--mean", "-9", "--std", "5", "--int8", *CALIBRATION),
        lambda: tensors(byola_shapes(2, ((64, 1024), (64, 64)))),
    ),
}


@contextmanager
def narrow_for_import() -> Iterator[None]:
    """`narrow`, AST with two blocks, and tags for embeddings of their size."""
    with pytest.MonkeyPatch.context() as patch:
        narrow(patch)
        patch.setattr(encoders.AST, "layers", (1, 2))
        tags = {
            "cnn14": lambda **_: nn.Linear(SMALL_CHANNELS[-1], N_CLASSES),
            "ast": lambda **_: ASTTags(),
            "efficientat": EfficientATTags,
        }
        patch.setattr(
            "encoders.published._untrained_tags",
            lambda name, parameters: tags.get(name, lambda **_: None)(**parameters),
        )
        yield


def import_case(name: str, folder: Path) -> Path:
    """The model folder that the real command makes of the case, `folder`/`name`, its weights beside it."""
    case = CASES[name]
    words = ["import", "--encoder", case.encoder, *case.words, "--out", str(folder / name)]
    with narrow_for_import():
        if case.file is not None:
            torch.save(case.file(), weights_of(name, folder))
            words += ["--weights", str(weights_of(name, folder))]
        assert main(words) == 0
    return folder / name


def weights_of(name: str, folder: Path) -> Path:
    return folder / f"{name}.pth"
