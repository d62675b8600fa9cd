"""Distillation: an encoder that learns what teachers say of the sounds it hears.

                                              ┌─► map ─► m    1 - cos(m, a teacher's embedding)    per teacher
    log-mel ─► encoder ─► pool ─► standardise ┼─► head ─► l   cross-entropy of l and its scores    per head
                                              └─► map ─► k    1 - cos(k, what the start says)      if kept
    its blocks' frames                                        squared error to a teacher's         if wanted
    two views ─► BYOL                                         its own loss                         if wanted

A teacher's embedding, and what the encoder made of the sound before the first step ("the start"), are
standardised per number by what was measured on the corpus: numbers that are always large would otherwise
decide the cosine alone. So are the student's, by what they were before the first step, and that for good:
the maps begin well conditioned and stay linear maps of the numbers themselves. (Statistics that follow the
student let its numbers run away: their mean grew fiftyfold in 500 steps, and all sounds had one direction.)
An encoder that begins with random weights and batch normalisation has no such numbers before its first step:
its numbers are standardised by each batch (`standardise = "batch"`), and its blocks' frames hold their scale.

A block's frames are compared with those of the same block of an efficientat, standardised likewise: as they
are where both have as many numbers, by a linear map where the teacher is wider.
"""

import copy
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from encoders import Student
from encoders.efficientat import EfficientAT, map_sizes
from training.pretrain.byol import BYOL
from training.pretrain.method import Projected, Step
from training.pretrain.recipe import DistilRecipe
from training.pretrain.teachers import EMBEDDING, MAP, Subject

LOWEST_LOGIT = -12.0  # of a teacher: below, a tag is as absent as can be
START = "start"
LEAST_STD = 0.1


class Standardised(nn.Module):
    """Numbers (B, D) to mean 0 and std 1 each, by statistics that were measured once."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("std", torch.ones(size))
        self.mean: Tensor
        self.std: Tensor

    def measure(self, numbers: Tensor) -> None:
        """numbers (n, D); one that hardly changes is not blown up: it keeps LEAST_STD of what others have."""
        std, mean = torch.std_mean(numbers.double(), dim=0, correction=0)
        self.mean.copy_(mean)
        self.std.copy_(std.clamp(min=max(LEAST_STD * float(std.mean()), torch.finfo(torch.float32).tiny)))

    def forward(self, numbers: Tensor) -> Tensor:
        return (numbers - self.mean) / self.std


class Distil(nn.Module):
    """`online` is the student. subjects: in the order of the answers that `forward` is given."""

    against_collapse = "or a larger batch_size"

    def __init__(
        self, encoder: Student, subjects: Sequence[Subject], recipe: DistilRecipe, byol: BYOL | None = None
    ) -> None:
        super().__init__()
        self.recipe = recipe
        self.subjects = tuple(subjects)
        self.byol = byol
        self.online = byol.online if byol else Projected(encoder, nn.Identity())
        size = encoder.embedding_size
        by_batch = recipe.standardise == "batch"
        self.standardise = nn.BatchNorm1d(size, affine=False) if by_batch else Standardised(size)
        self.blocks = [subject.block for subject in subjects if subject.kind == MAP]
        self.maps = nn.ModuleList([_map(subject, encoder, size) for subject in subjects])
        self.targets = nn.ModuleList(
            [Standardised(subject.size) for subject in subjects if subject.kind in (EMBEDDING, MAP)]
        )
        self.start: Student | None = None
        if recipe.keep_weight:
            self.start = copy.deepcopy(encoder).requires_grad_(False)
            self.start_map = nn.Linear(size, size)
            nn.init.eye_(self.start_map.weight)  # at the first step nothing is lost yet
            nn.init.zeros_(self.start_map.bias)
            self.start_target = Standardised(size)

    def forward(self, x: Tensor, answers: Sequence[Tensor], *views: Tensor) -> Step:
        """x (B, 1, F, T); answers: (B, numbers) per subject; two views (B, 1, F, T) for BYOL."""
        embedding, own_maps = self._heard(x)
        student = self.standardise(embedding)
        parts: dict[str, Tensor] = {}
        total = embedding.new_zeros(())
        standardised = iter(self.targets)
        for subject, mapping, answer in zip(self.subjects, self.maps, answers, strict=True):
            if subject.kind == EMBEDDING:
                loss = embedding_loss(mapping(student), next(standardised)(answer))
                weight = self.recipe.embedding_weight
            elif subject.kind == MAP:
                target, own = next(standardised), next(own_maps).float()
                is_same = isinstance(mapping, nn.Identity)
                loss = F.mse_loss(target(own) if is_same else mapping(own).float(), target(answer))
                weight = self.recipe.map_weight
            else:
                loss = tag_loss(mapping(student), answer, subject.kind, self.recipe.logit_weight)
                weight = self.recipe.tag_weight
            parts[subject.name] = loss.detach()
            total = total + weight * loss
        if self.start is not None:
            loss = embedding_loss(self.start_map(student), self.start_target(self.start_of(x)))
            parts[START] = loss.detach()
            total = total + self.recipe.keep_weight * loss
        if self.byol is not None:
            loss = self.byol(*views).loss
            parts["byol"] = loss.detach()
            total = total + self.recipe.byol_weight * loss
        return Step(loss=total, embedding=embedding.detach(), parts=parts)

    def _heard(self, x: Tensor) -> tuple[Tensor, Iterator[Tensor]]:
        """(B, 1, F, T) -> embedding (B, D), and the frames (B, T', numbers) of each block that is taught."""
        if self.blocks:
            assert isinstance(self.online.encoder, EfficientAT)
            frames, own_maps = self.online.encoder.with_maps(x, self.blocks)
            return self.online.encoder.pool(frames.float()), iter(own_maps)
        return (self.online.embed(x) if self.byol else self.online(x)[0]), iter(())

    @torch.no_grad()
    def start_of(self, x: Tensor) -> Tensor:
        """(B, 1, F, T) -> (B, D): as it is served, without dropout."""
        assert self.start is not None
        return self.start.eval().pool(self.start(x).float())

    @torch.no_grad()
    def measure(self, heard: Sequence[Tensor], answers: Sequence[Tensor]) -> None:
        """Take the statistics of student and targets, and from the teachers' mean score of each tag the bias
        of its head, which then begins at what is known before listening.

        heard: batches (B, 1, F, T) of crops; answers: (n, numbers) per subject, of these crops, of a map
        (n, T', numbers).
        """
        standardised = iter(self.targets)
        for subject, mapping, answer in zip(self.subjects, self.maps, answers, strict=True):
            if subject.kind in (EMBEDDING, MAP):
                target = next(standardised)
                assert isinstance(target, Standardised)
                target.measure(answer.flatten(0, -2))
            else:
                assert isinstance(mapping, nn.Linear)
                mean = answer.mean(dim=0).clamp(1e-5, 1 - 1e-5)
                mapping.bias.copy_(mean.logit() if subject.kind == "multilabel" else mean.log())
                nn.init.zeros_(mapping.weight)
        if isinstance(self.standardise, Standardised):
            self.standardise.measure(torch.cat([self.online.embed(x) for x in heard]))
        if self.start is not None:
            self.start_target.measure(torch.cat([self.start_of(x) for x in heard]))

    def keep_start(self) -> None:
        """The student as it is now is what shall be kept."""
        if self.start is not None:
            self.start.load_state_dict(self.online.encoder.state_dict())

    def before_step(self) -> None:
        if self.byol is not None:
            self.byol.before_step()


def _map(subject: Subject, encoder: Student, size: int) -> nn.Module:
    """From the student's numbers to what is taught; none from a block to one that has as many."""
    if subject.kind != MAP:
        return nn.Linear(size, subject.size)
    assert isinstance(encoder, EfficientAT)
    of_block = map_sizes(encoder.width)[subject.block]
    return nn.Identity() if of_block == subject.size else nn.Linear(of_block, subject.size)


def embedding_loss(mapped: Tensor, target: Tensor) -> Tensor:
    """(B, D), (B, D) -> mean of 1 - cosine: 0 when all agree, 1 when nothing is known."""
    return (1 - F.cosine_similarity(mapped.float(), target, dim=-1)).mean()


def tag_loss(logits: Tensor, scores: Tensor, kind: str, logit_weight: float) -> Tensor:
    """(B, C) logits and the teacher's scores -> the mean over the crops of the cross-entropy, summed over the
    tags, and logit_weight times the squared error of the logits, the teacher's not below LOWEST_LOGIT."""
    logits = logits.float()
    if kind == "multiclass":
        return F.cross_entropy(logits, scores)
    loss = F.binary_cross_entropy_with_logits(logits, scores, reduction="none")
    if logit_weight:
        lowest = torch.sigmoid(torch.tensor(LOWEST_LOGIT)).item()
        taught = scores.clamp(lowest, 1 - lowest).logit()
        loss = loss + logit_weight * (logits.clamp(min=LOWEST_LOGIT) - taught).square()
    return loss.sum(dim=-1).mean()
