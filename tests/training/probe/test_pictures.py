import numpy as np
from PIL import Image

from training.probe.pictures import draw_confusion, draw_tsne, picture_file


def test_a_confusion_matrix_is_brightest_where_clips_lie(tmp_path):
    draw_confusion(tmp_path / "matrix.png", np.diag([5, 3]), ("dog", "rain"), "toy")
    with Image.open(tmp_path / "matrix.png") as image:
        picture = np.asarray(image.convert("L"))
    assert picture.shape[0] > 300
    assert picture.std() > 20  # something is drawn


def test_a_tsne_picture_is_drawn_for_few_clips_too(tmp_path):
    x = np.random.default_rng(0).normal(size=(9, 5)).astype(np.float32)
    draw_tsne(tmp_path / "tsne.png", x, np.arange(9) % 3, ("a", "b", "c"), "toy")
    with Image.open(tmp_path / "tsne.png") as image:
        assert image.size[0] > 400


def test_a_tasks_name_becomes_a_files_name_beside_the_results(tmp_path):
    path = picture_file(tmp_path / "mine.json", "birds/2024 (all)", "tsne")
    assert path == tmp_path / "mine.birds_2024__all_.tsne.png"
