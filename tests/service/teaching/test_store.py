"""What was taught outlives whatever happens to processes, disks and files: real processes, real limits."""

import json
import multiprocessing
import os
import resource
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from service.errors import HeadConflict, Overloaded, StorageFailed, TeachingLimit, UnknownExample, UnknownHead
from service.inference.card import Card, load_card
from service.process.files import NEW
from service.teaching import store as store_module
from service.teaching.store import Example, Limits, Store, encoder_of

fork = multiprocessing.get_context("fork")
LIMITS = Limits(heads=5, labels=10, examples=500, bytes=10_000_000)


@pytest.fixture(scope="module")
def card(toy_folder: Path) -> Card:
    return load_card(toy_folder)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "data", LIMITS)


def example(number: int, label: str = "a", encoder: str = "e") -> Example:
    return Example(f"{number:016x}-000", (label,), "x.wav", 0.0, 1.0, "2026-01-01", encoder, f"{number:016x}")


def add(store: Store, *numbers: int, label: str = "a", clip: bytes | None = None) -> None:
    store.put("toy", "doors", {})
    with store.adding("toy", "doors") as adding:
        for number in numbers:
            adding.add([example(number, label)], np.full((1, 16), number, np.float32), clip)


def head_bytes(card: Card, value: float) -> bytes:
    """A head of one label whose bias is `value`."""
    D = card.embedding_size
    tensors = {
        "scaler_mean": np.zeros(D, np.float32),
        "scaler_std": np.ones(D, np.float32),
        "weight": np.zeros((1, D), np.float32),
        "bias": np.full(1, value, np.float32),
    }
    metadata = {"labels": json.dumps(["a"]), "task": "multilabel", "encoder": encoder_of(card)}
    return save(tensors, metadata)


def ids(store: Store) -> list[str]:
    return [one.id for one in store.examples("toy", "doors")[1]]


def test_what_is_added_is_there_with_its_vector(store: Store) -> None:
    add(store, 1, 2)
    contents = store.contents("toy", "doors", encoder="e", embedding_size=16)
    assert [one.labels for one in contents.examples] == [("a",), ("a",)]
    assert contents.vectors[:, 0].tolist() == [1.0, 2.0]
    outdated = store.contents("toy", "doors", encoder="another", embedding_size=16)
    assert len(outdated.outdated) == 2
    assert outdated.vectors.shape == (0, 16)


def test_a_model_that_takes_samples_has_an_encoder_too(card: Card) -> None:
    """Its folder has no frontend.safetensors; another graph is another encoder."""
    one, other = ({"encoder.onnx": digest} for digest in ("a" * 64, "b" * 64))
    encoders = [encoder_of(card.model_copy(update={"files": files})) for files in (one, other)]
    assert len({*encoders, encoder_of(card)}) == 3


def test_damaged_files_are_passed_over_and_told_of(store: Store, card: Card) -> None:
    add(store, 1, 2, 3, 4)
    folder = store.folder / "toy" / "taught" / "doors" / "examples"
    paths = sorted(folder.iterdir())
    paths[0].write_bytes(paths[0].read_bytes()[:-10])  # torn
    paths[1].write_bytes(b"")
    paths[2].write_bytes(os.urandom(2000))
    state, examples, damaged = store.examples("toy", "doors")
    assert [one.id for one in examples] == [example(4).id]
    assert damaged == 3
    store.publish("toy", "doors", head_bytes(card, 1.0), {}, edits=state.edits)
    served = store.folder / "toy" / "heads" / "doors.safetensors"
    served.write_bytes(served.read_bytes()[:-3])
    (served.parent / "other.safetensors").write_bytes(head_bytes(card, 2.0))
    taught = store.taught(card, own=())
    assert list(taught.heads) == ["other"]
    assert "no safetensors file" in taught.refused["doors"]
    (store.folder / "toy" / "taught" / "doors" / "head.json").write_text("{")
    with pytest.raises(StorageFailed, match="PUT the head"):
        store.state("toy", "doors")
    store.put("toy", "doors", {})
    assert ids(store) == [example(4).id]


def killed(work: Callable[[int], None], *, after: int, seconds: float) -> None:
    """work(0), work(1), ... in a process of its own, killed so many seconds after so many are done."""
    done, says_done = os.pipe()

    def work_on() -> None:
        for number in range(10_000):
            work(number)
            os.write(says_done, b".")

    process = fork.Process(target=work_on)
    process.start()
    for _ in range(after):
        assert os.read(done, 1) == b"."
    time.sleep(seconds)
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    os.close(done)
    os.close(says_done)


def test_kill_9_in_the_middle_leaves_the_last_good_head_and_whole_examples(store: Store, card: Card) -> None:
    add(store, 0)
    store.publish("toy", "doors", head_bytes(card, 0.0), {}, edits=1)

    def work(number: int) -> None:
        add(store, number, clip=b"sound" * 1000)
        store.publish("toy", "doors", head_bytes(card, number), {"a": "b"}, edits=time.time_ns())

    for seconds in np.random.default_rng(0).uniform(0, 0.02, size=8):
        killed(work, after=3, seconds=seconds)
        taught = store.taught(card, own=())
        assert not taught.refused
        assert taught.heads["doors"].bias[0] >= 2  # what the process that was killed had last published
        _, examples, damaged = store.examples("toy", "doors")
        assert damaged == 0
        assert len(store.contents("toy", "doors", encoder="e", embedding_size=16).vectors) == len(examples)
    add(store, 300)
    assert not list(store.folder.rglob(f"{NEW}*")), "what it has left is removed"
    assert example(300).id in ids(store)


def test_two_processes_that_write_lose_nothing_of_each_other(store: Store) -> None:
    add(store, 0)
    processes = [
        fork.Process(target=lambda first=first: [add(store, number) for number in range(first, first + 20)])
        for first in (100, 200, 300)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    assert len(ids(store)) == 61
    assert store.state("toy", "doors").edits >= 61


def test_a_process_that_was_stopped_with_the_lock_ends_the_others_wait(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "LOCK_S", 0.3)
    add(store, 0)
    has_it = fork.Event()

    def hold() -> None:
        with store.adding("toy", "doors"):
            has_it.set()
            time.sleep(60)

    process = fork.Process(target=hold)
    process.start()
    assert has_it.wait(30)
    with pytest.raises(Overloaded, match="another process"):
        add(store, 1)
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join(10)
    add(store, 1)
    assert len(ids(store)) == 2


def full(store: Store, card: Card, told: "multiprocessing.Queue[str]") -> None:
    """No file may be longer than 600 bytes from here on, which the system says as it says that a disk is
    full."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (600, 600))
    for act in (
        lambda: add(store, 2, clip=b"sound" * 1000),
        lambda: store.publish("toy", "doors", head_bytes(card, 2.0) + bytes(2000), {}, edits=99),
    ):
        try:
            act()
            told.put("nothing")
        except StorageFailed as error:
            told.put(str(error))


def test_a_full_disk_is_told_and_what_was_there_stays(store: Store, card: Card) -> None:
    add(store, 1)
    store.publish("toy", "doors", head_bytes(card, 1.0), {}, edits=1)
    told = fork.Queue()
    process = fork.Process(target=full, args=(store, card, told))
    process.start()
    process.join(60)
    for _ in range(2):
        assert "nothing that was kept before is lost" in told.get(timeout=10)
    assert ids(store) == [example(1).id]
    assert store.taught(card, own=()).heads["doors"].bias[0] == 1.0
    assert not list(store.folder.rglob(f"{NEW}*.safetensors"))


def test_an_older_fit_does_not_replace_a_newer_one(store: Store, card: Card) -> None:
    add(store, 1)
    assert store.publish("toy", "doors", head_bytes(card, 2.0), {}, edits=7)
    assert not store.publish("toy", "doors", head_bytes(card, 1.0), {}, edits=5)
    assert store.taught(card, own=()).heads["doors"].bias[0] == 2.0
    store.remove("toy", "doors")
    assert not store.publish("toy", "doors", head_bytes(card, 3.0), {}, edits=9)
    assert store.heads("toy") == []


def test_each_change_moves_the_generation_on_even_in_one_instant(store: Store, card: Card) -> None:
    add(store, 1)
    seen = {store.generation("toy")}
    for edits in range(20):
        store.publish("toy", "doors", head_bytes(card, 1.0), {}, edits=edits)
        seen.add(store.generation("toy"))
    assert len(seen) == 21


def test_a_clip_goes_with_the_last_of_its_examples(store: Store) -> None:
    store.put("toy", "doors", {})
    with store.adding("toy", "doors") as adding:
        two = [example(1), Example(**{**example(1).__dict__, "id": f"{1:016x}-001"})]
        adding.add(two, np.zeros((2, 16), np.float32), b"sound")
    assert store.clip("toy", "doors", two[0].id) == b"sound"
    store.forget("toy", "doors", example=two[0].id)
    assert store.clip("toy", "doors", two[1].id) == b"sound"
    store.forget("toy", "doors", example=two[1].id)
    assert not list((store.folder / "toy" / "taught" / "doors" / "clips").iterdir())
    with pytest.raises(UnknownExample):
        store.forget("toy", "doors", label="a")


def test_limits_hold(store: Store, card: Card) -> None:
    for number in range(5):
        store.put("toy", f"head{number}", {})
    with pytest.raises(TeachingLimit, match="VIOLA_MAX_TAUGHT_HEADS"):
        store.put("toy", "one-more", {})
    with pytest.raises(UnknownHead):
        store.remove("toy", "one-more")
    store.remove("toy", "head0")
    store.take_in("toy", "imported", head_bytes(card, 1.0), card)
    with pytest.raises(HeadConflict, match="was imported"), store.adding("toy", "imported"):
        pass
