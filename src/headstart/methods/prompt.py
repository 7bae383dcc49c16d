"""Learned tokens beside the input's own, before the first block or before every block."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from headstart.errors import MethodError
from headstart.methods._checks import flag, number, whole
from headstart.methods._example import example
from headstart.protocols import Context, Method
from headstart.values import Batch, Group

CHILD = "headstart_prompt"
"""The name under which a block holds its prompt; all other names stay as they are."""

TOLERANCE = 1e-4
"""Largest relative change of a text's features that padding may make, prompt included."""

_passing = threading.local()
"""What the prompt's places hold between two blocks, for each thread's running pass."""


@dataclass
class Prompt(Method):
    """Trains tokens that stand beside the input's own in the blocks of a frozen transformer.

    Equation: [x_i, p_i] = block_i([x_{i-1}, p_{i-1}]), with x_0 (N,T,V) the embedded input and p_0 (length,V) learned.
    With `deep`, [x_i, _] = block_i([x_{i-1}, P_{i-1}]), with every P_i learned and what block i answers in its places
    dropped. Pooling sees x alone.

    Source: Lester et al. 2021 (prompt tuning), section 2; for pictures VPT-shallow, Jia et al. 2022, section 3.2.
    `deep`: VPT-deep, same section; P-tuning v2 (Liu et al. 2021) learns keys and values in each layer, where this
    learns the tokens that they are made from.

    Requires: a transformer whose blocks take and give tokens (N,T,V) and that adds positions below its blocks, as BERT,
    RoBERTa, DistilBERT, ELECTRA and ViT do. Convolutional networks and those with relative or rotary positions inside
    the blocks are refused; so are, without `deep`, those that run one block several times. Owns `groups`, so it
    excludes `freeze`, `lora`, `ia3`, `adapter` and `surgical`. Claims every block.

    Shapes: `length` more tokens in every block. Hidden states (N,T,V) outside the blocks are the same, so that class
    token, mean over tokens and maps of patches are pooled as ever.

    Neighbours: `adapter` and `lora` learn how tokens are changed, this learns what they see. The prompt has no position
    and stands behind the input; attention does not ask where. PEFT's own prompt tuning wraps whole models with a head,
    so this is our own surgery. Unlike other surgery it changes the network's answers from the start; `lwf` and `delta`
    compare with the network before it when they are listed before it. A backbone that holds a prompt of this kind
    already goes on with it. The prompt stays in the finished model. List `depth` before it, which would else not know
    the blocks' inputs again.

    Example: `--method prompt:length=16,deep=true`; `hs.methods.Prompt(length=8)`.

    Defaults: length = 8 is small beside the 10 to 100 of the papers, since every token costs time in every pass; not
    tuned. Vectors are drawn with a deviation of 0.02, at which BERT's own embeddings start. The rates used when none is
    given are 5e-4 for text and 3e-4 otherwise, as for `ia3`, whose reasons for a higher rate of what is added hold
    here too: on tweets a rate of 1e-1 with speed = 1 ended below the probe. speed = 20 came out about even with
    60 there; for pictures nothing was tried.

    length: tokens learned, for each block with `deep`. deep: new ones for every block. speed: the prompt learns at this
    many times the run's rate.
    """

    length: int = 8
    deep: bool = False
    speed: float = 20.0

    def __post_init__(self) -> None:
        whole("prompt:length", self.length, 1, "such as length=8")
        flag("prompt:deep", self.deep)
        number("prompt:speed", self.speed, 0, "such as speed=20", above=True)

    def adapt(self, model: nn.Module, ctx: Context) -> nn.Module:
        """Put the prompt in. Raises MethodError for a backbone that cannot take one."""
        backbone: Any = model.backbone
        blocks = list(backbone.blocks)
        for block in blocks:
            ctx.claim(block)
        held = [getattr(block, CHILD, None) for block in blocks]
        if any(tokens is not None for tokens in held):
            self._same(held)
            return model
        with ctx.quiet(model), torch.no_grad():
            widths = _widths(backbone, blocks, deep=self.deep)
            blind = _moved_by_padding(backbone) <= TOLERANCE
            for number, (block, wide) in enumerate(zip(blocks, widths, strict=True)):
                vectors = None
                if self.deep or number == 0:
                    vectors = _draw(self.length, wide, ctx.generator)
                onward = not self.deep and number < len(blocks) - 1
                near = next(block.parameters())
                _insert(block, Tokens(vectors, self.length, onward).to(near.device, near.dtype))
            _prove(backbone, blind=blind)
        return model

    def _same(self, held: list[Any]) -> None:
        """A prompt that is there already must be the one that is asked for."""
        lengths = {tokens.length for tokens in held if tokens is not None}
        deep = all(tokens is not None and tokens.vectors is not None for tokens in held)
        # One block alone is the same either way.
        if lengths != {self.length} or (len(held) > 1 and deep is not self.deep):
            raise MethodError(
                f"this backbone holds a prompt of length {min(lengths)} with deep={str(deep).lower()} already, "
                f"received length={self.length},deep={str(self.deep).lower()}: give the same options, or another "
                f"backbone"
            )

    def groups(self, model: nn.Module, ctx: Context) -> list[Group]:
        """The prompt, faster than the head."""
        held = (module for module in model.modules() if isinstance(module, Tokens))
        return [Group(tuple(p for tokens in held for p in tokens.parameters()), self.speed)]

    def learning_rate(self, modality: str) -> float | None:
        """5e-4 for text, 3e-4 otherwise; the prompt learns `speed` times faster."""
        return 5e-4 if modality == "text" else 3e-4

    def remains(self) -> bool:
        """The prompt stays."""
        return True


class Tokens(nn.Module):
    """What a block needs to see a prompt: its vectors (length,V), or None where the block before it hands them on.

    onward: whether the answers in the prompt's places are handed to the next block.
    """

    def __init__(self, vectors: Tensor | None, length: int, onward: bool) -> None:
        super().__init__()
        self.vectors = None if vectors is None else nn.Parameter(vectors)
        self.length = length
        self.onward = onward

    def forward(self, hidden: Tensor) -> Tensor:
        """The same: a block that runs whatever it holds passes through here."""
        return hidden

    def enter(self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Pre-hook: the block sees the prompt behind its tokens, and masks that let it."""
        hidden = _hidden(args, kwargs)
        rows, places, _ = hidden.shape
        own = _passing.tokens if self.vectors is None else self.vectors.expand(rows, -1, -1)
        joined = torch.cat([hidden, own.to(hidden.dtype)], 1)

        def wider(value: Any) -> Any:
            if value is hidden:
                return joined
            is_mask = isinstance(value, Tensor) and value.ndim in (2, 4) and value.shape[-1] == places
            return _seen(value, places, self.length) if is_mask else value

        return tuple(wider(value) for value in args), {name: wider(value) for name, value in kwargs.items()}

    def leave(self, block: nn.Module, args: Any, output: Any) -> Any:
        """Hook: what follows the block sees the input's own places alone."""
        first = output[0] if isinstance(output, tuple) else output
        kept, prompt = first[:, : -self.length], first[:, -self.length :]
        _passing.tokens = prompt if self.onward else None
        return (kept, *output[1:]) if isinstance(output, tuple) else kept


def _insert(block: nn.Module, tokens: Tokens) -> None:
    block.add_module(CHILD, tokens)
    # Bound methods: a copy of the block copies them with the tokens they belong to.
    block.register_forward_pre_hook(tokens.enter, with_kwargs=True)
    block.register_forward_hook(tokens.leave)


def _hidden(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    """The hidden states that a block is given."""
    given: Tensor = args[0] if args else kwargs["hidden_states"]
    return given


def _seen(mask: Tensor, places: int, length: int) -> Tensor:
    """A mask (N,T), (N,1,1,T) or (N,1,T,T) with room for the prompt: all see it, and it sees what anyone sees."""
    # Additive masks let through at 0, others at True or 1.
    columns = mask.new_full((*mask.shape[:-1], length), 0 if mask.is_floating_point() else 1)
    wide = torch.cat([mask, columns], -1)
    if mask.ndim == 4 and mask.shape[-2] == places:
        widest = wide.any(-2, keepdim=True) if wide.dtype == torch.bool else wide.amax(-2, keepdim=True)
        wide = torch.cat([wide, widest.expand(*wide.shape[:-2], length, -1)], -2)
    return wide


def _draw(length: int, wide: int, generator: torch.Generator) -> Tensor:
    drawn = torch.randn((length, wide), generator=generator, device=generator.device).cpu()
    return drawn * 0.02


def _widths(backbone: Any, blocks: list[nn.Module], *, deep: bool) -> list[int]:
    """The width of the tokens that each block takes, as seen on one small input."""
    seen: dict[int, list[torch.Size]] = {}

    def look(block: nn.Module, args: Any, kwargs: Any) -> None:
        seen.setdefault(id(block), []).append(_hidden(args, kwargs).shape)

    with _watched(blocks, look):
        backbone.features(example(backbone))
    for block in blocks:
        kind, shapes = type(block).__name__, seen.get(id(block), [])
        if any(len(shape) != 3 for shape in shapes):
            raise MethodError(
                f"'prompt' adds tokens to a sequence (N,T,V), and blocks of type {kind} work on maps: this backbone is "
                f"no plain transformer; use adapter, lora or freeze"
            )
        if not shapes or (len(shapes) > 1 and not deep):
            raise MethodError(
                f"a block of type {kind} is run {len(shapes)} times in a pass, so a prompt cannot go through the "
                f"blocks in turn; use prompt:deep=true or adapter"
            )
    return [seen[id(block)][0][2] for block in blocks]


@contextmanager
def _watched(blocks: list[nn.Module], look: Any) -> Iterator[None]:
    hooks = [block.register_forward_pre_hook(look, with_kwargs=True) for block in blocks]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _prove(backbone: Any, *, blind: bool) -> None:
    """Run with the prompt: it must fit, and padding must change nothing, unless the network was not blind to it before.

    Raises MethodError.
    """
    try:
        moved = _moved_by_padding(backbone)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:  # foreign code that counts on its own length
        reason = " ".join(str(error).split())[:160]
        raise MethodError(
            f"the blocks of this backbone cannot take more tokens than its input has ({reason}); use adapter or lora"
        ) from None
    if blind and not moved <= TOLERANCE:
        raise MethodError(
            "with a prompt, padding would change this backbone's answers: its blocks treat masks or positions in their "
            "own way; use adapter or lora"
        )


def _moved_by_padding(backbone: Any) -> float:
    """The relative change of a text's features when it is padded; 0 for pictures, which are only run."""
    row = example(backbone)
    alone: Tensor = backbone.features(row).pooled
    if backbone.modality != "text":
        return 0.0
    padded: Tensor = backbone.features(_padded(backbone, row)).pooled
    return float((padded - alone).norm() / alone.norm().clamp_min(1e-12))


def _padded(backbone: Any, row: Batch) -> Batch:
    """The row with three more tokens that do not count."""
    inputs = {name: torch.cat([value, value.new_zeros(1, 3)], 1) for name, value in row.inputs.items()}
    inputs["input_ids"][:, -3:] = int(backbone.preprocessing.get("pad_id", 0))
    return row.replace(inputs=inputs)
