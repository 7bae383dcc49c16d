"""Random changes of the inputs that leave their labels true."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from headstart.errors import MethodError, MissingExtra
from headstart.methods._audio_augment import Changes, Hearing, change
from headstart.methods._checks import flag, number, whole
from headstart.methods._draws import numpy_from, seeded
from headstart.methods._eda import edit, vocabulary
from headstart.protocols import Context, Method
from headstart.values import Batch

PICTURES = ("flip", "crop", "rotate", "colour", "randaugment", "magnitude", "trivial", "erasing", "views")
TEXTS = ("drop", "delete", "swap", "insert", "synonym", "neighbours", "share", "views")
SOUNDS = ("speed", "shift", "snr", "gain", "bands", "band", "gaps", "gap", "share")
OWN = {"image": PICTURES, "text": TEXTS, "audio": SOUNDS}
"""The options that mean something for a modality."""

AREA, RATIO, GREY = (0.02, 0.4), (0.3, 1 / 0.3), 0.5
"""What erasing covers, its sides, and with what: grey, since the paper's noise is not drawn within a picture's range by
torchvision."""


@dataclass
class Augment(Method):
    """Changes each row at random in ways that keep its label: views of pictures, edits of texts, noise on sounds.

    Equation: x <- t(x) with t drawn anew for each row and step. Pictures: a random crop of a share in [crop, 1] of
    the area brought back to size, a flip, a rotation within +-rotate degrees, brightness, contrast and saturation
    changed by factors in [1 - colour, 1 + colour], then `randaugment` operations of one magnitude or with `trivial`
    one operation of a random magnitude, then with probability `erasing` a grey rectangle over 0.02 to 0.4 of the
    area, its sides in a ratio from 0.3 to 1 / 0.3. Texts: with probability `share` one operation drawn evenly from
    those whose rate is not 0, on a row of l ordinary tokens: `drop` hides each with probability rate behind the
    mask token, `delete` removes each with probability rate, `swap`, `insert` and `synonym` act max(1, rate * l)
    times. Sounds: with probability `share` the row is played at a speed drawn from {1 - speed, 1, 1 + speed}, moved
    in time by up to +-shift of its length, given white noise at a ratio drawn evenly from [snr, snr + 20] dB and a
    gain within +-gain dB; then `gaps` spans of t frames, t even in [0, gap * F], and `bands` spans of f bands, f
    even in [0, band * M], of its spectrogram (F frames, M bands) are set to the row's mean. With `views` = k each
    picture or text has k views, drawn once, and epoch e shows number e mod k: what a frozen bottom makes of them is
    then computed once.

    Source: Szegedy et al. 2015, section 6 (crops); Cubuk et al. 2020 (RandAugment), section 3; Müller and Hutter 2021
    (TrivialAugment), algorithm 1, with its wide ranges; Zhong et al. 2020 (Random Erasing); Wei and Zou 2019 (EDA),
    section 2, with nearest neighbours in the backbone's embedding table in place of WordNet; Iyyer et al. 2015 (Deep
    Averaging Networks), section 2 (token dropout); Park et al. 2019 (SpecAugment), section 2, without its time
    warping; Ko et al. 2015 (Audio Augmentation for Speech Recognition), speed perturbation.

    Requires: pictures, texts or sounds; for pictures the `images` extra (torchvision). Labels of whole rows, not of
    tokens.

    Shapes: pixels (N,C,H,W) in [0, 1] -> the same. input_ids (N,T) -> (N,T'), T' as long as the longest edited row,
    never beyond the backbone's limit; mask and token types follow. Special tokens stay where they are.
    wave (N,S) -> (N,S'), S' as the slowest row needs within the backbone's `max_seconds`, with hidden_frames (N,F) and
    hidden_bands (N,M) for backbones that see a spectrogram. For those that hear the wave, gaps are silence and bands
    (80, of equal width in mel) are filtered out.

    Neighbours: `mixup`, `manifold` and `cutmix` combine rows and their labels; list them after this one. `cutoff` hides
    tokens of texts from the whole network.

    Example: `--method augment:trivial,erasing=0.25`, `--method augment:swap=0.1` or `--method augment:snr=0,gaps=2`;
    `hs.methods.Augment(randaugment=2)`.

    Defaults: flip = 0.5 is torchvision's. crop = 0.5 is what DINO calls a large view (Caron et al. 2021, section 3.1)
    rather than the 0.08 of training from nothing, since small sets cannot afford to lose the object. rotate, colour
    and randaugment are off: whether a turned or recoloured picture keeps its label depends on the data. magnitude =
    9 is RandAugment's on ImageNet (section 4). trivial and erasing are off; erasing = 0.5 is what its paper trains
    with. views is off, as in those papers. All text rates are 0.1, EDA's own for larger sets. share = 0.5 keeps
    half of the rows clean, where EDA adds edited copies to clean rows. neighbours = 5 is a choice of this project.
    speed = 0.1 is Ko et al.'s. band = 0.1 and gap = 0.1 are milder than SpecAugment's policies for sentences (27 of
    80 bands for LibriSpeech): on single words, five a class, those cost accuracy (one seed, two speakers of fsdd:
    85.0 with band=0.34,gap=0.2, 93.5 with these, 89.0 without both). On two other speakers these gained nothing
    over plain fine-tuning: 95.6 against 95.7 at five a class (two seeds), 95.4 against 99.4 at twenty (one seed).
    shift, snr, gain, bands and gaps are not tuned.

    flip: probability. crop: smallest share of the area, 1 is off. rotate: degrees. colour: 0 is off. randaugment:
    number of operations. magnitude: 0 to 30. trivial: true or false. erasing: probability, 0 is off. views: of each
    row, 0 draws a new one in each step. drop, delete, swap, insert, synonym: rates, 0 is off. neighbours: of a
    token. share: of texts and sounds that are changed. speed: 0 is off. shift: share of the length, 0 is off. snr:
    the lowest signal-to-noise ratio in dB, 0 is off. gain: dB, 0 is off. bands, gaps: how many spans are hidden, 0
    is off. band, gap: the longest, as a share of all bands or of the row's frames.
    """

    flip: float = 0.5
    crop: float = 0.5
    rotate: float = 0.0
    colour: float = 0.0
    randaugment: int = 0
    magnitude: int = 9
    trivial: bool = False
    erasing: float = 0.0
    views: int = 0
    drop: float = 0.1
    delete: float = 0.1
    swap: float = 0.1
    insert: float = 0.1
    synonym: float = 0.1
    neighbours: int = 5
    share: float = 0.5
    speed: float = 0.1
    shift: float = 0.1
    snr: float = 10.0
    gain: float = 6.0
    bands: int = 1
    band: float = 0.1
    gaps: int = 1
    gap: float = 0.1

    def __post_init__(self) -> None:
        number("augment:flip", self.flip, 0, "a probability such as flip=0.5", high=1)
        number("augment:crop", self.crop, 0, "a share of the area such as crop=0.4; 1 is off", high=1, above=True)
        number("augment:rotate", self.rotate, 0, "degrees such as rotate=10", high=180)
        number("augment:colour", self.colour, 0, "such as colour=0.2", high=1)
        whole("augment:randaugment", self.randaugment, 0, "a number of operations such as randaugment=2")
        whole("augment:magnitude", self.magnitude, 0, "such as magnitude=9", high=30)
        flag("augment:trivial", self.trivial)
        number("augment:erasing", self.erasing, 0, "a probability such as erasing=0.25; 0 is off", high=1)
        whole("augment:views", self.views, 0, "a number of views of each row such as views=4; 0 draws anew")
        if self.trivial and self.randaugment:
            raise MethodError("augment:trivial draws what augment:randaugment sets: keep one of the two")
        for name in ("drop", "delete", "swap", "insert", "synonym"):
            number(f"augment:{name}", getattr(self, name), 0, f"a rate such as {name}=0.1; 0 is off", high=0.9)
        whole("augment:neighbours", self.neighbours, 1, "such as neighbours=5")
        number("augment:share", self.share, 0, "such as share=0.5", high=1, above=True)
        number("augment:speed", self.speed, 0, "such as speed=0.1; 0 is off", high=0.5)
        number("augment:shift", self.shift, 0, "a share of the length such as shift=0.1; 0 is off", high=0.9)
        number("augment:snr", self.snr, 0, "dB such as snr=10; 0 is off", high=100)
        number("augment:gain", self.gain, 0, "dB such as gain=6; 0 is off", high=40)
        for name in ("bands", "gaps"):
            whole(f"augment:{name}", getattr(self, name), 0, f"a number of spans such as {name}=1; 0 is off")
        for name in ("band", "gap"):
            number(f"augment:{name}", getattr(self, name), 0, f"a share such as {name}=0.2", high=1, above=True)

    def adapt(self, model: nn.Module, ctx: Context) -> nn.Module:
        """The model unchanged; what it makes of its input is remembered.

        Raises MethodError for options of the other modality, and where nothing is left switched on.
        """
        self.kind_ = ctx.modality.name
        if self.kind_ not in OWN:
            raise MethodError(f"'augment' knows pictures, texts and sounds, this run reads {self.kind_}; leave it out")
        for item in fields(self):
            if item.name not in OWN[self.kind_] and getattr(self, item.name) != item.default:
                raise MethodError(f"augment:{item.name} does nothing to inputs of kind '{self.kind_}': leave it out")
        self.salt_ = int(torch.randint(2**31, (1,), generator=ctx.generator))
        if self.kind_ == "image":
            self.view_ = self._pipeline()
            return model
        if self.kind_ == "audio":
            self.changes_ = Changes(**{name: getattr(self, name) for name in SOUNDS})
            if not self.changes_.any:
                raise MethodError("every sound operation of 'augment' is switched off: set one, such as augment:snr=10")
            self.hearing_ = Hearing.of(model.backbone.preprocessing)  # type: ignore[union-attr, arg-type]
            return model
        self.rates_ = {name: getattr(self, name) for name in TEXTS[:5] if getattr(self, name) > 0}
        if not self.rates_:
            raise MethodError("every text operation of 'augment' is switched off: set one, such as augment:swap=0.1")
        backbone: Any = model.backbone
        table = _table(backbone, ctx) if self.insert or self.synonym else None
        self.words_ = vocabulary(backbone, table, self.neighbours)
        return model

    def remains(self) -> bool:
        """The model keeps no trace of the training."""
        return False

    def _pipeline(self) -> Callable[[Tensor], Tensor]:
        """torchvision's transforms that are switched on, built anew for the size of each batch of pictures."""
        try:
            from torchvision.transforms import v2
        except ImportError:
            raise MissingExtra("torchvision", "images", "the method 'augment' on pictures") from None
        on = self.flip or self.rotate or self.colour or self.randaugment or self.trivial or self.erasing
        if self.crop == 1 and not on:
            raise MethodError("every picture operation of 'augment' is switched off: set one, such as augment:flip=0.5")

        def view(picture: Tensor) -> Tensor:
            steps: list[Any] = []
            if self.crop < 1:
                steps.append(v2.RandomResizedCrop(picture.shape[-2:], scale=(self.crop, 1.0), antialias=True))
            if self.flip:
                steps.append(v2.RandomHorizontalFlip(self.flip))
            if self.rotate:
                steps.append(v2.RandomRotation(self.rotate, interpolation=v2.InterpolationMode.BILINEAR))
            if self.colour:
                steps.append(v2.ColorJitter(self.colour, self.colour, self.colour))
            if self.randaugment:
                steps.append(v2.RandAugment(self.randaugment, self.magnitude))
            if self.trivial:
                steps.append(v2.TrivialAugmentWide())
            if self.erasing:
                steps.append(v2.RandomErasing(self.erasing, AREA, RATIO, GREY))
            for step in steps:
                picture = step(picture)
            return picture.clamp(0, 1)

        return view

    def transform(self, batch: Batch, ctx: Context) -> Batch:
        """The batch with changed pixels, waves or token ids; labels, weights and origin as they were."""
        if not hasattr(self, "kind_"):
            raise MethodError("'augment' needs to see the model first: call adapt(model, ctx) before transform")
        each = self._generators(batch, ctx) if self.views else []
        if self.kind_ == "text":
            draws = [numpy_from(own) for own in each] or numpy_from(ctx.generator)
            return batch.replace(inputs=edit(dict(batch.inputs), self.words_, self.rates_, self.share, draws))
        if self.kind_ == "audio":
            return batch.replace(inputs=change(batch.inputs, self.changes_, self.hearing_, ctx.generator))
        pixels = batch.inputs["pixels"]
        if each:
            pixels = torch.cat([self._seen(picture[None], own) for picture, own in zip(pixels, each, strict=True)])
        else:
            pixels = self._seen(pixels, ctx.generator)
        return batch.replace(inputs={**batch.inputs, "pixels": pixels})

    def versions(self) -> int:
        """As many as there are views."""
        return self.views

    def _seen(self, pixels: Tensor, generator: torch.Generator) -> Tensor:
        # torchvision draws from torch's global generator: it is seeded here and put back afterwards.
        with seeded(generator):
            return torch.stack([self.view_(picture) for picture in pixels])

    def _generators(self, batch: Batch, ctx: Context) -> list[torch.Generator]:
        """One a row, for the view that this epoch shows; rows that stand in no split have no views of their own."""
        first = self.salt_ + ctx.progress.epoch % self.views
        return [
            ctx.generator if row < 0 else torch.Generator().manual_seed(first + row * self.views)
            for row in batch.row.tolist()
        ]


def _table(backbone: Any, ctx: Context) -> Tensor:
    """The word embeddings before training, (tokens,V): with live ones a resumed run would find other neighbours."""
    weight: nn.Parameter = backbone.network.get_input_embeddings().weight
    start = ctx.start.get(weight)
    return weight.detach().clone() if start is None else start
