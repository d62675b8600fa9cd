"""The common API of HEAR (arXiv 2203.03022): audio tensors in, scene and timestamp embeddings out.

    model = hear.load_model("models/byola")                     a model folder, as the server serves it
    hear.get_scene_embeddings(audio, model)                     (n_sounds, D)
    hear.get_timestamp_embeddings(audio, model)                 (n_sounds, T', D), (n_sounds, T') milliseconds

audio: (n_sounds, n_samples) float, mono in [-1, 1], at `model.sample_rate` Hz. docs/hear.md says how
`hear-validator`, heareval and EVAR are told of it.
"""

from pathlib import Path

from torch import Tensor

from service.inference.model import Precision
from service.inference.session import Device

from .served import Served

__all__ = ["Served", "get_scene_embeddings", "get_timestamp_embeddings", "load_model"]

DEFAULT = Path(__file__).parents[1] / "models" / "byola"


def load_model(
    model_file_path: str = "", *, precision: Precision = "float32", device: Device = "auto"
) -> Served:
    """The model of a folder, by default models/byola. Raises ModelFolderError.

    precision: float32 gives the same figures on every machine; int8 (or auto, which takes it on a CPU) those
    of the server as it stands. device: where onnxruntime computes; audio and embeddings stay where they are.
    """
    folder = Path(model_file_path) if model_file_path else DEFAULT
    return Served.load(folder, precision=precision, device=device)


def get_scene_embeddings(audio: Tensor, model: Served) -> Tensor:
    """(n_sounds, n_samples) -> (n_sounds, model.scene_embedding_size) float32."""
    return model(audio)


def get_timestamp_embeddings(audio: Tensor, model: Served) -> tuple[Tensor, Tensor]:
    """(n_sounds, n_samples) -> embeddings (n_sounds, T', model.timestamp_embedding_size) float32, and the
    centres of their frames (n_sounds, T') in milliseconds, float32."""
    return model.timestamps(audio)
