"""A checkpoint as its authors distribute it in, an encoder with its weights out; nothing is left unread.

Every key of the file must fill a weight, or be one of those that are known to be of no use, with the reason.

    vggish, vggish-4k    features.*, fc.* (tcvrick) or embeddings.* (harritaylor); PCA left aside
    cnn14                `model`: bn0, conv_block*, fc1, fc_audioset (the tags); the front-end left aside
    ast                  module.v.*, module.mlp_head.* (the tags), or the names of the Hugging Face port
    efficientat          features.*, classifier.* (the tags), of any width
    msm-mae              `model`: those of a masked autoencoder; its decoder left aside

The files of BYOL-A are read by model_export/sources/published_byola.py; `plain_byola_key` is for its layered
variant.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from . import build_any
from .ast import N_CLASSES, ASTTags
from .contract import AnyEncoder
from .efficientat import HIDDEN, EfficientATTags, scaled
from .msm_mae import BANDS, PATCH


class WrongWeightsError(ValueError):
    """The file is not what it should be: says what it looks like and what was expected."""


@dataclass(frozen=True)
class Published:
    """`encoder` is in eval mode, without gradients. `tags`: (…, embedding_size) -> (…, 527) logits, of plain
    cnn14, ast and efficientat. `ignored`: key -> why it is of no use."""

    encoder: AnyEncoder
    parameters: dict[str, Any]  # of build_any
    tags: nn.Module | None
    ignored: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Layout:
    """`is_it`: by the keys of the file. `renamed`: its state dict under our names, the tags' under `tags.`;
    `no_use`: pattern of a key -> reason."""

    name: str
    encoders: tuple[str, ...]
    is_it: Callable[[set[str]], bool]
    renamed: Callable[[dict[str, Any]], dict[str, Any]]
    no_use: tuple[tuple[str, str], ...] = ()


def load_published(name: str, content: Any, *, fuse: Sequence[int] = ()) -> Published:
    """The encoder `name` with the weights of `content`, what torch.load or safetensors read.

    Raises WrongWeightsError, or ValueError for layers that cannot be fused.
    """
    state = unwrapped(content)
    layout = _expected_layout(name, state)
    _check_front_end(state)
    renamed, ignored = _sorted_out(layout, state)
    parameters = _sizes(name, renamed)
    if complaints := _complaints(_whole(layout.encoders[0], parameters), renamed):
        raise WrongWeightsError(f"This looks like {layout.name}, but {'; '.join(complaints)}.")
    if fuse:
        parameters["fuse"] = tuple(fuse)
    encoder = build_any(name, **parameters)
    assert isinstance(encoder, nn.Module)
    _fill(encoder, renamed)
    tags = None if fuse else _untrained_tags(name, parameters)
    if tags is not None:
        _fill(tags, {key.removeprefix(TAGS): renamed[key] for key in renamed if key.startswith(TAGS)})
    for key in renamed.keys() - encoder.state_dict().keys():
        if not key.startswith(TAGS):
            ignored[key] = "lies behind the last layer that is used"
        elif tags is None:
            ignored[key] = "reads tags from the plain embedding, not from fused layers"
    return Published(encoder, parameters, tags, ignored)


def unwrapped(content: Any) -> dict[str, Any]:
    """The state dict, from under `model` or `state_dict` if it lies there, beside the training's notes."""
    for wrapper in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping):
        raise WrongWeightsError(f"This holds a {type(content).__name__}, not a dict of weights.")
    return {str(key).removeprefix("module."): value for key, value in content.items()}


def plain_byola_key(key: str) -> str:
    """A key of BYOL-A's layered variant under the name that the plain encoder has for it."""
    for layered, plain in LAYERED_BYOLA.items():
        if key.startswith(f"{layered}."):
            return plain + key.removeprefix(layered)
    return key


LAYERED_BYOLA = {
    "conv1.0": "features.0",
    "conv1.1": "features.1",
    "conv2.0": "features.4",
    "conv2.1": "features.5",
    "conv3.0": "features.8",
    "conv3.1": "features.9",
    "fc1.0": "fc.0",
    "fc2.1": "fc.3",
}


TAGS = "tags."


def _sizes(name: str, state: Mapping[str, Any]) -> dict[str, Any]:
    """What build_any must be told of a network that is published in several sizes."""
    if name == "msm-mae":
        return {"unit_frames": _unit_frames(state)}
    return {"width": _width(state)} if name == "efficientat" else {}


def _has(*prefixes: str) -> Callable[[set[str]], bool]:
    """Are there keys of every prefix?"""
    return lambda keys: all(any(key.startswith(prefix) for key in keys) for prefix in prefixes)


def _with_names(*names: tuple[str, str]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Each key with the first matching beginning replaced."""

    def renamed(state: dict[str, Any]) -> dict[str, Any]:
        return {_replaced(key, names): value for key, value in state.items()}

    return renamed


def _replaced(key: str, names: Sequence[tuple[str, str]]) -> str:
    for theirs, ours in names:
        if key.startswith(theirs):
            return ours + key.removeprefix(theirs)
    return key


def _from_hugging_face(state: dict[str, Any]) -> dict[str, Any]:
    """The port keeps query, key and value apart, and names every part in its own way."""
    renamed: dict[str, Any] = {}
    for key, value in state.items():
        key = key.removeprefix("audio_spectrogram_transformer.")
        found = re.fullmatch(r"encoder\.layer\.(\d+)\.(.+)\.(weight|bias)", key)
        if not found:
            renamed[_replaced(key, HUGGING_FACE)] = value
            continue
        number, part, kind = found.groups()
        name = f"blocks.{number}.{HUGGING_FACE_BLOCK.get(part, part)}.{kind}"
        if part.startswith(QKV_PARTS):
            name = f"blocks.{number}.{part}.{kind}"  # joined below
        renamed[name] = value
    return _joined_qkv(renamed)


QKV_PARTS = tuple(f"attention.attention.{part}" for part in ("query", "key", "value"))

HUGGING_FACE = (
    ("embeddings.cls_token", "cls_token"),
    ("embeddings.distillation_token", "dist_token"),
    ("embeddings.position_embeddings", "pos_embed"),
    ("embeddings.patch_embeddings.projection.", "patch_embed.proj."),
    ("layernorm.", "norm."),
    ("classifier.layernorm.", "tags.norm."),
    ("classifier.dense.", "tags.linear."),
)

HUGGING_FACE_BLOCK = {
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "attention.output.dense": "attn.proj",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
}


def _joined_qkv(state: dict[str, Any]) -> dict[str, Any]:
    """Three matrices of each block as the one that computes all of them; incomplete ones stay, to be told."""
    joined = dict(state)
    for key in state:
        if QKV_PARTS[0] not in key:
            continue
        parts = [key.replace(QKV_PARTS[0], part) for part in QKV_PARTS]
        if all(isinstance(state.get(part), Tensor) for part in parts):
            joined[key.replace(QKV_PARTS[0], "attn.qkv")] = torch.cat([joined.pop(part) for part in parts])
    return joined


def _with_key_bias(state: dict[str, Any]) -> dict[str, Any]:
    """MSM-MAE adds a bias to queries and values only: a bias of zero for the keys makes them one vector."""
    joined = dict(state)
    for key in state:
        if not key.endswith(".attn.q_bias"):
            continue
        block = key.removesuffix("q_bias")
        q, v = state[key], state.get(f"{block}v_bias")
        if isinstance(q, Tensor) and isinstance(v, Tensor):
            del joined[key], joined[f"{block}v_bias"]
            joined[f"{block}qkv.bias"] = torch.cat([q, torch.zeros_like(q), v])
    return joined


def _from_efficientat(state: dict[str, Any]) -> dict[str, Any]:
    tags = _with_names(("classifier.2.", "tags.hidden."), ("classifier.5.", "tags.linear."))
    return {key.replace(".conc_se_layers.0.", "."): value for key, value in tags(state).items()}


FRONT_END = "is the front-end, which viola computes from its own arrays"

LAYOUTS = (
    Layout(
        "VGGish as tcvrick ported it",
        ("vggish", "vggish-4k"),
        _has("features.0.", "features.13.", "fc.4."),
        _with_names(),
    ),
    Layout(
        "VGGish as harritaylor ported it",
        ("vggish", "vggish-4k"),
        _has("features.0.", "features.13.", "embeddings.4."),
        _with_names(("embeddings.", "fc.")),
        ((r"pproc\..+", "is the PCA for 8-bit embeddings, which viola does not apply"),),
    ),
    Layout("the PCA of VGGish alone, without its network", (), _has("pca_eigen_vectors"), _with_names()),
    Layout(
        "CNN14 of PANNs",
        ("cnn14",),
        _has("bn0.", "conv_block6.", "fc_audioset."),
        _with_names(("fc_audioset.", "tags.")),
        ((r"spectrogram_extractor\..+", FRONT_END), (r"logmel_extractor\..+", FRONT_END)),
    ),
    Layout(
        "another network of PANNs, not CNN14", (), _has("spectrogram_extractor.", "logmel_extractor."), dict
    ),
    Layout(
        "AST as its authors publish it",
        ("ast",),
        _has("v.cls_token", "v.dist_token", "mlp_head."),
        _with_names(("v.", ""), ("mlp_head.0.", "tags.norm."), ("mlp_head.1.", "tags.linear.")),
        ((r"v\.head(_dist)?\..+", "belongs to the 1000 classes of ImageNet, which AST does not use"),),
    ),
    Layout(
        "AST as Hugging Face ports it",
        ("ast",),
        _has("audio_spectrogram_transformer.embeddings.distillation_token", "classifier.dense."),
        _from_hugging_face,
    ),
    Layout(
        "MSM-MAE",
        ("msm-mae",),
        _has("cls_token", "pos_embed", "blocks.0.attn.q_bias", "norm."),
        _with_key_bias,
        ((r"(decoder_.+|mask_token)", "belongs to the decoder, which only the training needs"),),
    ),
    Layout(
        "EfficientAT",
        ("efficientat",),
        _has("features.16.", "features.4.block.2.conc_se_layers.0.", "classifier.2.", "classifier.5."),
        _from_efficientat,
    ),
    Layout("another MobileNet, not EfficientAT", (), _has("features.0.0.", "features.1.block."), dict),
    Layout("another vision transformer", (), _has("cls_token", "pos_embed", "blocks.0."), dict),
    Layout(
        "the layered variant of BYOL-A v1 (import it with --encoder byola-2020)",
        (),
        _has("conv1.0.", "conv3.0.", "fc2.1."),
        dict,
    ),
    Layout("BYOL-A v1 (byola-2020)", (), _has("features.8.", "fc.3."), dict),
    Layout("BYOL-A v2 (byola-2022)", (), _has("features.4.", "fc.3."), dict),
)


def _expected_layout(name: str, state: Mapping[str, Any]) -> Layout:
    keys = set(state)
    layout = next((layout for layout in LAYOUTS if layout.is_it(keys)), None)
    if layout is None or name not in layout.encoders:
        found = layout.name if layout else f"nothing that viola knows: its keys are {_some(state)}"
        expected = " or ".join(known.name for known in LAYOUTS if name in known.encoders)
        raise WrongWeightsError(f"This looks like {found}. For {name}, {expected} was expected.")
    return layout


def _sorted_out(layout: Layout, state: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """The state dict under our names without what is of no use; and that, with the reasons."""
    ignored = {
        key: reason for key in state for pattern, reason in layout.no_use if re.fullmatch(pattern, key)
    }
    return layout.renamed({key: value for key, value in state.items() if key not in ignored}), ignored


def _unit_frames(state: Mapping[str, Any]) -> int:
    """Of MSM-MAE, by the number of its positions: one, and five bands of so many patches."""
    positions = state.get("pos_embed")
    if not isinstance(positions, Tensor) or positions.dim() != 3 or (positions.shape[1] - 1) % BANDS:
        raise WrongWeightsError(f"The pos_embed of MSM-MAE should be (1, 1 + {BANDS} * columns, 768).")
    return (positions.shape[1] - 1) // BANDS * PATCH


def _width(state: Mapping[str, Any]) -> float:
    """Of EfficientAT: of those that give so many hidden numbers the one, in thousandths, that gives most of
    the other shapes too, and of several the shortest to write."""
    hidden = state.get("tags.hidden.bias")
    n = hidden.numel() if isinstance(hidden, Tensor) else 0
    near = range(max(1, 1000 * (n - 8) // HIDDEN), 1000 * (n + 8) // HIDDEN + 1)
    widths = [width / 1000 for width in near if scaled(HIDDEN, width / 1000) == n]
    if not widths:
        raise WrongWeightsError(
            f"The classifier.2.bias of EfficientAT should have {HIDDEN} numbers times its width, a multiple "
            f"of 8: {n} belong to no width."
        )

    def fitness(width: float) -> tuple[int, int]:
        expected = _whole("efficientat", {"width": width})
        fitting = [key for key in expected if expected[key].shape == getattr(state.get(key), "shape", None)]
        return len(fitting), -len(str(width))

    return max(widths, key=fitness)


def _check_front_end(state: Mapping[str, Any]) -> None:
    """CNN14 exists for three sample rates, whose weights differ in nothing but their values."""
    stft = state.get("spectrogram_extractor.stft.conv_real.weight")
    if isinstance(stft, Tensor) and stft.shape[-1] != 512:
        rate = {1024: "32 kHz", 256: "8 kHz"}.get(stft.shape[-1], "another sample rate")
        raise WrongWeightsError(
            f"This looks like CNN14 of PANNs for {rate} (windows of {stft.shape[-1]} samples). The one for "
            "16 kHz was expected, whose windows have 512: Cnn14_16k_mAP=0.438.pth."
        )


def _whole(name: str, parameters: Mapping[str, Any]) -> dict[str, Tensor]:
    """The shapes of all that a file of this encoder holds, its tags included."""
    with torch.device("meta"):
        shapes = dict(build_any(name, **parameters).state_dict())
        tags = _untrained_tags(name, parameters)
    if tags is not None:
        shapes |= {TAGS + key: value for key, value in tags.state_dict().items()}
    return shapes


def _fill(network: nn.Module, state: Mapping[str, Any]) -> None:
    """With its own part of the checked state; in eval mode, without gradients."""
    own = network.state_dict()
    network.load_state_dict({key: state.get(key, own[key]).to(own[key].dtype) for key in own})
    network.eval().requires_grad_(False)


def _untrained_tags(name: str, parameters: Mapping[str, Any]) -> nn.Module | None:
    if name == "cnn14":
        return nn.Linear(2048, N_CLASSES)
    if name == "efficientat":
        return EfficientATTags(parameters["width"])
    return ASTTags() if name == "ast" else None


def _complaints(expected: Mapping[str, Tensor], found: Mapping[str, Any]) -> list[str]:
    complaints = []
    # Files of torch before 0.4.1 hold no counter of batches, and no network reads it.
    counters = {key for key in expected if key.endswith(".num_batches_tracked")}
    if missing := [key for key in expected if key not in found and key not in counters]:
        complaints.append(f"it lacks {_some(missing)}")
    if unknown := [key for key in found if key not in expected]:
        complaints.append(f"it has {_some(unknown)}, which the network has not")
    for key in expected:
        if key not in found:
            continue
        value = found[key]
        if not isinstance(value, Tensor):
            complaints.append(f"{key} is a {type(value).__name__}, not a tensor")
        elif value.shape != expected[key].shape:
            shapes = f"{list(value.shape)}, not {list(expected[key].shape)}"
            complaints.append(f"{key} has the shape {shapes}")
        elif not bool(torch.isfinite(value).all()):
            complaints.append(f"{key} holds NaN or infinite values")
    return complaints


def _some(keys: Any) -> str:
    """The first keys, and how many more there are."""
    names = list(map(str, keys))
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more
