"""AST against its published sizes, and against Hugging Face's implementation with the same random weights."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor
from transformers import ASTConfig, ASTForAudioClassification

from encoders.ast import AST, ASTTags
from encoders.published import LAYOUTS, unwrapped

from .conftest import look_trained, n_parameters, trained_looking


def reference(n_frames: int) -> Any:
    """Hugging Face's AST of two blocks for so many frames."""
    config = ASTConfig(
        num_hidden_layers=2,
        max_length=n_frames,
        num_labels=527,
        layer_norm_eps=1e-6,
        id2label={i: str(i) for i in range(527)},
    )
    model = ASTForAudioClassification(config)
    look_trained(model)
    model.audio_spectrogram_transformer.embeddings.position_embeddings.normal_(std=0.3)
    return model


def ours(theirs: Any, layers: tuple[int, ...], folder: Path) -> AST:
    """With the weights of their model for 1024 frames, by way of the file that they write."""
    theirs.save_pretrained(folder)
    file = safetensors.torch.load_file(folder / "model.safetensors")
    layout = next(layout for layout in LAYOUTS if layout.name.startswith("AST as Hugging Face"))
    state = layout.renamed(unwrapped(file))
    encoder = AST(layers)
    encoder.load_state_dict({key: state[key] for key in encoder.state_dict()})
    return encoder.eval().requires_grad_(False)


def test_the_parameters_are_as_many_as_published() -> None:
    block = 768 * 2304 + 2304 + 768 * 768 + 768 + 768 * 3072 + 3072 + 3072 * 768 + 768 + 4 * 768
    patches, positions, tokens, norm = 256 * 768 + 768, (2 + 12 * 101) * 768, 2 * 768, 2 * 768
    assert patches + positions + tokens + 12 * block + norm == 86_187_264
    assert n_parameters("ast") == n_parameters("ast", fuse=(5, 12)) == 86_187_264
    assert n_parameters("ast", fuse=(5,)) == 86_187_264 - 7 * block
    tags = sum(weights.numel() for weights in ASTTags().parameters())
    assert tags == 2 * 768 + 768 * 527 + 527 == 406_799
    assert 86_187_264 + 2 * (768 * 1000 + 1000) + tags == 88_132_063  # with DeiT's two heads: the file


def test_an_embedding_has_the_papers_size() -> None:
    with torch.device("meta"):
        assert AST().embedding_size == 768
        assert AST((5, 12)).embedding_size == 1536


def test_the_network_and_its_tags_are_hugging_faces(tmp_path: Path) -> None:
    theirs = reference(1024)
    encoder = ours(theirs, (1, 2), tmp_path)
    x = torch.randn(2, 1024, 128)
    expected = theirs(x, output_hidden_states=True)
    norm = theirs.audio_spectrogram_transformer.layernorm
    layers = [norm(hidden[:, :2]).mean(dim=1) for hidden in expected.hidden_states[1:3]]
    found = encoder(x.transpose(1, 2)[:, None])
    assert found.shape == (2, 1, 1536)
    # float32 through two blocks of 1214 tokens
    torch.testing.assert_close(found[:, 0], torch.cat(layers, dim=1), rtol=1e-4, atol=1e-4)

    tags = ASTTags()
    tags.norm.load_state_dict(theirs.classifier.layernorm.state_dict())
    tags.linear.load_state_dict(theirs.classifier.dense.state_dict())
    tags.norm.eps = theirs.classifier.layernorm.eps  # 1e-5 in the original, that of the body in the port
    torch.testing.assert_close(tags(found[:, 0, 768:]), expected.logits, rtol=1e-4, atol=1e-4)


def test_the_tags_have_the_usual_eps() -> None:
    assert ASTTags().norm.eps == 1e-5
    with torch.device("meta"):
        assert AST((1,)).norm.eps == 1e-6


def test_a_shorter_clip_takes_the_middle_of_the_positions(tmp_path: Path) -> None:
    theirs = reference(1024)
    encoder = ours(theirs, (2,), tmp_path)
    T, t = 98, 9
    table = theirs.audio_spectrogram_transformer.embeddings.position_embeddings
    columns = table[0, 2:].reshape(12, 101, 768)[:, 50 - 4 : 50 - 4 + t].reshape(12 * t, 768)
    short = reference(T)
    state = dict(theirs.state_dict())
    state["audio_spectrogram_transformer.embeddings.position_embeddings"] = torch.cat(
        [table[0, :2], columns]
    )[None]
    short.load_state_dict(state)
    x = torch.randn(1, T, 128)
    expected = short.audio_spectrogram_transformer(x).pooler_output
    torch.testing.assert_close(encoder(x.transpose(1, 2)[:, None])[:, 0], expected, rtol=1e-4, atol=1e-4)


def test_a_longer_clip_stretches_the_positions_band_by_band() -> None:
    encoder = AST((1,))
    t = 150
    table = encoder.pos_embed[0, 2:].detach().reshape(12, 101, 768).double().numpy()
    places = (np.arange(t) + 0.5) * 101 / t - 0.5  # the middle of each column, in columns of the table
    places = np.clip(places, 0, 100)
    low = np.floor(places).astype(int)
    share = (places - low)[None, :, None]
    expected = table[:, low] * (1 - share) + table[:, np.minimum(low + 1, 100)] * share
    found = encoder._positions(t)[0].permute(1, 2, 0).detach().numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert encoder.eval()(torch.randn(1, 1, 128, 16 + 10 * (t - 1))).shape == (1, 1, 768)


def test_a_shorter_clip_in_a_padded_batch_keeps_its_own_positions() -> None:
    encoder = trained_looking(AST((1, 2)))
    lengths = [16, 98, 131]
    padded = torch.full((3, 1, 128, 136), torch.nan)
    clips = [torch.randn(1, 1, 128, length) for length in lengths]
    for row, clip in enumerate(clips):
        padded[row, :, :, : clip.shape[3]] = clip
    together = encoder(padded, torch.tensor(lengths))
    alone: Tensor = torch.cat([encoder(clip) for clip in clips])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_a_padded_batch_beyond_the_table_is_refused() -> None:
    with pytest.raises(ValueError, match="101 columns"):
        AST((1,))(torch.zeros(1, 1, 128, 1200), torch.tensor([1200]))


def test_it_hears_windows_of_what_it_was_trained_with() -> None:
    assert (AST.windows.kind, AST.windows.frames) == ("independent", 1024)
    assert AST.frontend.samples_for(AST.windows.min_frames) == 2_800
    assert AST.first_frame_centre_ms == sum(10 * t + 12.5 for t in range(1024)) / 1024


def test_an_unknown_block_is_refused() -> None:
    with pytest.raises(ValueError, match="ast has no layer 13"):
        AST((5, 13))
