"""MSM-MAE against its published sizes, NumPy and PyTorch's layers; and a tiny run on real sounds."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from encoders.frontend import MSM_MAE
from encoders.msm_mae import MSMMAE
from model_export.__main__ import main as export
from service.inference.model import Model
from service.inference.windows import embed
from service.sound.audio import decode
from training.clips import Clips
from training.logmel import LogMel
from training.pretrain import checkpoint
from training.pretrain.checkpoint import CheckpointError
from training.pretrain.distributed import World
from training.pretrain.loop import pretrain
from training.pretrain.msm_mae import MaskedAutoencoder, chosen, draw_masks, targets_of
from training.pretrain.recipe import MsmMaeRecipe, Recipe, RecipeError, as_tables, load_recipe, recipe_of
from training.pretrain.run import Options, new_run
from training.pretrain.sampler import plan_of
from training.pretrain.warm_start import start_from
from training.probe.layers import load_probed

ALONE = World(rank=0, size=1, device=torch.device("cpu"))

# Units of 32 frames, so ten patches, of which two are visible. The 23 clips make 6 steps of 3 an epoch.
TINY = (
    "encoder.unit_frames=32",
    "encoder.width=16",
    "encoder.depth=1",
    "encoder.heads=2",
    "data.segment_s=0.32",
    "data.draws_power=0",
    "msm_mae.decoder_width=12",
    "msm_mae.decoder_depth=1",
    "msm_mae.decoder_heads=3",
    "optimisation.batch_size=4",
    "optimisation.epochs=2",
    "optimisation.warmup_steps=2",
)

Execute = Callable[[list[str]], "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return load_recipe("msm-mae-small", [*TINY])


@pytest.fixture
def model(recipe: Recipe) -> MaskedAutoencoder:
    model = new_run(recipe, ALONE.device).model
    assert isinstance(model, MaskedAutoencoder)
    return model


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, clips: Clips, recipe: Recipe) -> Path:
    out = tmp_path_factory.mktemp("runs") / "msm-mae"
    pretrain(clips, recipe, options_of(out), ALONE)
    return out


def options_of(out: Path, **changes: object) -> Options:
    options = Options(out=out, precision="float32", log_every=1, checkpoint_every_s=1e9)
    return replace(options, **changes)  # type: ignore[arg-type]


def losses_of(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "log.jsonl").read_text().splitlines()]


def noises(n: int = 3, seed: int = 0) -> Tensor:
    return torch.randn(n, 1, 80, 32, generator=torch.Generator().manual_seed(seed))


def masks_of(model: MaskedAutoencoder, x: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Those that the model draws after `torch.manual_seed(seed)`."""
    torch.manual_seed(seed)
    return draw_masks(x, model.decoder.n_patches, model.n_visible)


def with_patches(x: Tensor, numbers: Tensor, value: float) -> Tensor:
    """x with some patches of each sound, counted band by band, filled with one value."""
    x = x.clone()
    for sound, of_sound in zip(x, numbers.tolist(), strict=True):
        for number in of_sound:
            band, column = divmod(number, x.shape[3] // 16)
            sound[0, 16 * band : 16 * band + 16, 16 * column : 16 * column + 16] = value
    return x


# The network


def test_the_parameters_are_as_many_as_published() -> None:
    # The published count has no bias of the keys: 12 blocks of 768 and 4 of 384.
    recipe = load_recipe("msm-mae")
    assert recipe.msm_mae
    with torch.device("meta"):
        encoder = MSMMAE()
    model = MaskedAutoencoder(encoder, recipe.msm_mae)
    assert sum(weights.numel() for weights in model.parameters()) == 92_812_288 + 12 * 768 + 4 * 384
    assert (model.n_visible, model.decoder.n_patches) == (16, 65)


def test_the_recipe_is_the_published_one() -> None:
    tables = as_tables(load_recipe("msm-mae"))
    assert tables["encoder"] == {
        "name": "msm-mae", "unit_frames": 208, "width": 768, "depth": 12, "heads": 12
    }  # fmt: skip
    assert tables["msm_mae"]["mask_ratio"] == 0.75
    optimisation = tables["optimisation"]
    assert optimisation["learning_rate"] == pytest.approx(1.5e-4 * optimisation["batch_size"] / 128)
    assert (optimisation["epochs"], optimisation["schedule"], optimisation["weight_decay"]) == (
        100, "cosine", 0.05
    )  # fmt: skip


def test_targets_are_the_patches_band_by_band_each_with_mean_0_and_std_1() -> None:
    x = 3 + 2 * noises()
    plain, normalised = targets_of(x, normalised=False), targets_of(x, normalised=True)
    assert plain.shape == normalised.shape == (3, 10, 256)
    for sound in range(3):
        for band in range(5):
            for column in range(2):
                rows, columns = slice(16 * band, 16 * band + 16), slice(16 * column, 16 * column + 16)
                patch = x[sound, 0, rows, columns].double().numpy()
                number = 2 * band + column
                np.testing.assert_array_equal(plain[sound, number], patch.ravel())
                expected = (patch - patch.mean()) / patch.std()
                np.testing.assert_allclose(normalised[sound, number], expected.ravel(), atol=1e-5)


def test_a_patch_of_silence_is_to_be_guessed_as_zeros() -> None:
    assert not targets_of(torch.full((1, 1, 80, 32), -7.3), normalised=True).any()


def test_the_patches_to_guess_are_those_that_the_encoder_embeds_in_their_order(
    model: MaskedAutoencoder,
) -> None:
    x, encoder = noises(), model.online.encoder
    convolution = encoder.patch_embed.proj
    by_hand = targets_of(x, normalised=False) @ convolution.weight.flatten(start_dim=1).T + convolution.bias
    torch.testing.assert_close(encoder.patches(x), by_hand + encoder.pos_embed[:, 1:])


def test_masks_cover_every_patch_once_and_differ_from_sound_to_sound() -> None:
    torch.manual_seed(0)
    visible, masked = draw_masks(torch.zeros(2000, 1), 65, 16)
    assert visible.shape == (2000, 16)
    assert torch.equal(
        torch.cat([visible, masked], dim=1).sort(dim=1).values, torch.arange(65).expand(2000, 65)
    )
    share = torch.bincount(visible.flatten(), minlength=65) / 2000
    assert float((share - 16 / 65).abs().max()) < 0.04  # four standard deviations of a share of 2000
    assert len(visible.sort(dim=1).values.unique(dim=0)) == 2000


def test_the_encoder_hears_nothing_of_what_is_masked(model: MaskedAutoencoder) -> None:
    x = noises()
    visible, masked = masks_of(model, x, seed=5)
    other = with_patches(x, masked, value=100.0)
    assert not torch.equal(other, x)
    assert torch.equal(model.online(x, visible), model.online(other, visible))
    assert not torch.allclose(model.online(x, visible), model.online(with_patches(x, visible, 1.0), visible))


def test_all_patches_visible_give_what_is_served(model: MaskedAutoencoder) -> None:
    x, encoder = noises(), model.online.encoder
    tokens = model.online(x, torch.arange(10).expand(3, 10))[:, 1:]  # band by band
    frames = encoder(x)
    for frame in range(2):
        expected = torch.cat([tokens[:, 2 * band + frame] for band in range(5)], dim=1)
        torch.testing.assert_close(frames[:, frame], expected)


def test_the_loss_is_the_mean_squared_error_of_the_masked_patches_alone(model: MaskedAutoencoder) -> None:
    x = noises()
    visible, masked = masks_of(model, x, seed=5)
    guesses = model.decoder(model.online(x, visible), visible).detach().double().numpy()
    targets = targets_of(x, normalised=True).double().numpy()
    errors = [
        np.mean((guesses[sound, number] - targets[sound, number]) ** 2)
        for sound in range(3)
        for number in masked[sound]
    ]
    torch.manual_seed(5)
    step = model(x)
    assert step.loss.item() == pytest.approx(np.mean(errors), rel=1e-5)
    assert step.embedding.shape == (3, 16)
    assert not step.embedding.requires_grad


def test_guesses_of_visible_patches_get_no_gradient(model: MaskedAutoencoder) -> None:
    x, kept = noises(), []
    model.decoder.register_forward_hook(
        lambda _module, _inputs, guesses: guesses.retain_grad() or kept.append(guesses)
    )
    visible, masked = masks_of(model, x, seed=5)
    torch.manual_seed(5)
    model(x).loss.backward()
    gradient = kept[0].grad
    assert not chosen(gradient, visible).any()
    assert (chosen(gradient, masked).abs().sum(dim=2) > 0).all()


def test_the_decoder_puts_every_visible_patch_in_its_place(model: MaskedAutoencoder) -> None:
    """In another order the same patches give the same guesses; at other places they do not."""
    tokens = torch.randn(1, 4, 16)
    guesses = model.decoder(tokens, torch.tensor([[7, 2, 4]]))
    exchanged = tokens[:, [0, 2, 1, 3]]
    torch.testing.assert_close(model.decoder(exchanged, torch.tensor([[2, 7, 4]])), guesses)
    assert not torch.allclose(model.decoder(tokens, torch.tensor([[2, 7, 4]])), guesses, atol=1e-3)


def test_the_decoders_positions_are_sines_and_cosines_of_the_place(model: MaskedAutoencoder) -> None:
    positions = model.decoder.positions[0]
    assert positions.shape == (11, 12)
    assert not positions.requires_grad
    angles = np.arange(11)[:, None] / 10_000 ** (np.arange(6) / 6)
    np.testing.assert_allclose(positions[:, :6], np.sin(angles), atol=1e-6)
    np.testing.assert_allclose(positions[:, 6:], np.cos(angles), atol=1e-6)


def test_a_block_is_pytorchs_own_pre_norm_transformer_layer(model: MaskedAutoencoder) -> None:
    block = model.decoder.blocks[0]
    torch.manual_seed(0)
    for weights in block.parameters():
        torch.nn.init.normal_(weights, std=0.3)
    reference = torch.nn.TransformerEncoderLayer(
        12, 3, 48, dropout=0.0, activation=F.gelu, layer_norm_eps=1e-6, batch_first=True, norm_first=True
    )
    names = {
        "self_attn.in_proj_": "attn.qkv.",
        "self_attn.out_proj.": "attn.proj.",
        "linear1.": "mlp.fc1.",
        "linear2.": "mlp.fc2.",
        "norm1.": "norm1.",
        "norm2.": "norm2.",
    }
    state = block.state_dict()
    reference.load_state_dict(
        {theirs + part: state[ours + part] for theirs, ours in names.items() for part in ("weight", "bias")}
    )
    x = torch.randn(2, 7, 12)
    torch.testing.assert_close(block(x), reference(x), rtol=1e-4, atol=1e-5)


def test_everything_learns_but_the_positions(model: MaskedAutoencoder) -> None:
    model(noises(16)).loss.backward()
    still = {name for name, weights in model.named_parameters() if not weights.requires_grad}
    assert still == {"online.encoder.pos_embed", "decoder.positions"}
    for name, weights in model.named_parameters():
        if name not in still:
            assert weights.grad is not None, name
            assert weights.grad.any(), name


def test_weights_begin_as_maes(recipe: Recipe) -> None:
    fully_sized = load_recipe("msm-mae-small")
    model = new_run(fully_sized, ALONE.device).model
    encoder = model.online.encoder
    assert isinstance(encoder, MSMMAE)
    for weights in (encoder.patch_embed.proj.weight.flatten(1), encoder.blocks[0].attn.qkv.weight):
        bound = (6 / sum(weights.shape)) ** 0.5  # Glorot, uniform
        assert 0.99 * bound < float(weights.detach().abs().max()) <= bound
        assert float(weights.detach().std()) == pytest.approx(bound / 3**0.5, rel=0.01)
    assert not encoder.blocks[0].attn.qkv.bias.any()
    assert float(encoder.cls_token.detach().std()) == pytest.approx(0.02, rel=0.2)


def test_biases_and_gains_do_not_decay(recipe: Recipe) -> None:
    run = new_run(recipe, ALONE.device)
    decaying, others = run.optimiser.param_groups
    assert (decaying["weight_decay"], others["weight_decay"]) == (0.05, 0.0)
    assert decaying["betas"] == others["betas"] == (0.9, 0.95)
    assert {weights.dim() for weights in others["params"]} == {1}
    assert 1 not in {weights.dim() for weights in decaying["params"]}
    trained = [weights for weights in run.model.parameters() if weights.requires_grad]
    assert len(decaying["params"]) + len(others["params"]) == len(trained)


# A run


def test_what_a_sound_has_in_common_is_learned_from_its_visible_patches(model: MaskedAutoencoder) -> None:
    """All patches of a sound are one of two ramps: 1 is the loss of who does not listen, 0 of who does."""
    ramp = torch.linspace(-2, 2, 16).repeat(2)
    ramps = torch.stack([ramp.expand(80, 32), ramp.flip(0).expand(80, 32)])[:, None]
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=model.betas)
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    for _ in range(150):
        which = torch.randint(2, (16,), generator=generator)
        loss = model(ramps[which] + 0.1 * torch.randn(16, 1, 80, 32, generator=generator)).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss.item() < 0.2


def test_the_loss_falls(clips: Clips, recipe: Recipe, tmp_path: Path) -> None:
    longer = replace(recipe, optimisation=replace(recipe.optimisation, epochs=60.0, learning_rate=3e-3))
    pretrain(clips, longer, options_of(tmp_path), ALONE)
    losses = losses_of(tmp_path)
    assert len(losses) > 300
    assert np.mean(losses[-120:]) < 0.98 * np.mean(losses[:60])  # of a third, and of the first ten epochs


def test_a_run_in_parts_is_the_run_in_one_go(
    clips: Clips, recipe: Recipe, tmp_path: Path, finished: Path
) -> None:
    pretrain(clips, recipe, options_of(tmp_path, stop_after_steps=5), ALONE)
    pretrain(clips, recipe, options_of(tmp_path, resume=True), ALONE)
    assert losses_of(tmp_path) == losses_of(finished)
    mine, theirs = checkpoint.load(tmp_path), checkpoint.load(finished)
    for part in ("model", "average"):
        for name, value in theirs[part].items():
            assert torch.equal(mine[part][name], value), name
    assert mine["statistics"] == theirs["statistics"]


def test_two_processes_train_one_network(
    sounds: Path, cache: Path, run: Execute, environment: dict[str, str], tmp_path: Path
) -> None:
    environment |= {"GLOO_SOCKET_IFNAME": "lo"}
    line = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    line += ["-m", "training", "pretrain", "--recipe", "msm-mae-small", "--data", str(sounds)]
    line += ["--cache", str(cache), "--out", str(tmp_path), "--device", "cpu", "--precision", "float32"]
    for override in (*TINY, "optimisation.batch_size=8"):
        line += ["--set", override]
    done = run([*line, "--log-every", "1", "--stop-after", "3"])
    assert done.returncode == 0, done.stderr
    assert len(losses_of(tmp_path)) == 3


def test_bfloat16_trains_too(clips: Clips, recipe: Recipe, tmp_path: Path) -> None:
    pretrain(clips, recipe, options_of(tmp_path, precision="bfloat16", stop_after_steps=3), ALONE)
    assert np.isfinite(losses_of(tmp_path)).all()


def test_the_encoder_is_exported_and_served(finished: Path, fixtures_dir: Path, tmp_path: Path) -> None:
    line = ["export", "--run", str(finished), "--out", str(tmp_path / "model"), "--licence", "CC0-1.0"]
    assert export(line) == 0
    model = Model.load(tmp_path / "model", device="cpu")
    assert model.card.encoder.name == "msm-mae"
    assert model.card.encoder.parameters == {"unit_frames": 32, "width": 16, "depth": 1, "heads": 2}
    assert model.card.embedding_size == 5 * 16
    assert model.card.training["recipe"]["msm_mae"]["mask_ratio"] == 0.75  # type: ignore[index, call-overload]
    waveform = decode(fixtures_dir / "dog_bark_44k1_mono.ogg", sample_rate=16_000).samples
    logmel = model.logmel(waveform)
    np.testing.assert_allclose(
        LogMel(MSM_MAE)(torch.from_numpy(waveform)[None])[0, 0], logmel, rtol=1e-3, atol=1e-3
    )
    served = embed(model.run, model.card, [logmel]).vector

    state = checkpoint.load(finished)
    encoder = MSMMAE(unit_frames=32, width=16, depth=1, heads=2)
    encoder.load_state_dict(state["average"])
    x = (torch.from_numpy(logmel)[None, None] - state["statistics"]["mean"]) / state["statistics"]["std"]
    with torch.no_grad():
        trained = encoder.eval().pool(encoder(x))[0]
    np.testing.assert_allclose(served, trained, rtol=1e-4, atol=1e-4)


def test_layers_are_neither_fused_nor_probed(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["export", "--run", str(finished), "--out", str(tmp_path / "model"), "--licence", "CC0-1.0"]
    assert export([*line, "--fuse", "1"]) != 0
    assert "msm-mae gives its last layer alone" in capsys.readouterr().err
    with pytest.raises(CheckpointError, match="an msm-mae, whose layers are not told apart"):
        load_probed(finished)


def test_a_run_begins_with_the_weights_of_another_but_not_with_a_models(
    clips: Clips, recipe: Recipe, finished: Path, tmp_path: Path
) -> None:
    run = new_run(replace(recipe, optimisation=replace(recipe.optimisation, seed=1)), ALONE.device)
    plan = plan_of(clips, recipe, ALONE)
    assert plan.segment == 5120
    statistics, _ = start_from(finished, run.model, recipe, noises())
    state = checkpoint.load(finished)
    assert statistics.mean == state["statistics"]["mean"]
    for name, value in run.model.state_dict().items():
        assert torch.equal(value, state["model"][name])
    line = ["export", "--run", str(finished), "--out", str(tmp_path / "model"), "--licence", "CC0-1.0"]
    assert export(line) == 0
    with pytest.raises(CheckpointError, match="holds a msm-mae, whose graph keeps no weights apart"):
        start_from(tmp_path / "model", run.model, recipe, noises())


# Mistakes


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        (
            "data.segment_s=1.0",
            r"gives 101 log-mel frames, .*unit_frames asks for 208: 2\.08 s would be right",
        ),
        ("encoder.d=3072", r"no key 'encoder\.d': the known ones are name, unit_frames, width"),
        ("msm_mae.mask_ratio=1.5", r"msm_mae\.mask_ratio must be more than 0 and at most 1"),
        ("msm_mae.targets=raw", r"msm_mae\.targets must be one of normalised, plain"),
        ("optimisation.weight_decay=-1", r"optimisation\.weight_decay must be 0 or more"),
        ("byol.target_decay=0.5", "it has 2 of them"),
        ("augmentation.mixup_alpha=0.2", r"\[augmentation\] has no use beside the method \[msm_mae\]"),
    ],
)
def test_a_mistake_is_named(override: str, sentence: str) -> None:
    with pytest.raises(RecipeError, match=sentence):
        load_recipe("msm-mae-small", [override])


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["encoder.heads=5"], r"\[encoder\] A width of 192 is no whole number of 5 heads"),
        (["encoder.unit_frames=207", "data.segment_s=2.07"], r"\[encoder\] A unit of 207 frames"),
        (["encoder.width=198"], r"\[encoder\] A width of 198 is no multiple of 4"),
        (["msm_mae.mask_ratio=1.0"], "leaves 0 of 65 patches visible"),
        (
            ["msm_mae.decoder_heads=3"],
            r"decoder_width = 128 must be even, and a multiple of decoder_heads = 3",
        ),
    ],
)
def test_sizes_that_do_not_fit_are_named(overrides: list[str], sentence: str) -> None:
    recipe = load_recipe("msm-mae-small", overrides)
    with pytest.raises(RecipeError, match=sentence):
        new_run(recipe, ALONE.device)


def test_method_and_encoder_belong_together() -> None:
    masked, byola = as_tables(load_recipe("msm-mae-small")), as_tables(load_recipe("byola-2022-small"))
    with pytest.raises(RecipeError, match=r"\[msm_mae\] trains an msm-mae.*does not fit a byola-2022"):
        recipe_of({**masked, "encoder": byola["encoder"]})
    with pytest.raises(RecipeError, match=r"An msm-mae learns by the method \[msm_mae\] alone"):
        recipe_of({**byola, "encoder": masked["encoder"]})


def test_without_normalisation_the_targets_are_the_log_mel_itself() -> None:
    encoder = MSMMAE(unit_frames=32, width=16, depth=1, heads=2)
    sizes = MsmMaeRecipe(mask_ratio=0.75, targets="plain", decoder_width=8, decoder_depth=1, decoder_heads=2)
    model, x = MaskedAutoencoder(encoder, sizes), 5 + noises()
    visible, masked = masks_of(model, x, seed=1)
    guesses = chosen(model.decoder(model.online(x, visible), visible), masked)
    expected = F.mse_loss(guesses, chosen(targets_of(x, normalised=False), masked))
    torch.manual_seed(1)
    torch.testing.assert_close(model(x).loss, expected)
