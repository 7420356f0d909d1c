"""CLIP for pictures and captions, small, trained on frames of films and sentences that fit them.

Flowley is to put sounds at the right moment, so the sentences tell the instant ("a ball, touching the floor"), and
each batch holds several frames of each of its films, which differ in nothing else. After 400 steps of contrast
alone, the features told kinds but hardly moments. Auxiliary linear heads (`StateHeads`) therefore classify the states
of objects from the embedding during training, and are not kept. One folder serves as both encoders: `VisualEncoder`
reads its vision tower, `TextEncoder` its text tower.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, log_softmax

from miniature.models.encoder_scores import held_out_scores
from miniature.models.frames import (
    IMAGE_PX,
    Frames,
    FrameTruth,
    fits,
    full_sentence,
    image_processor,
    often_near_events,
    random_sentence,
    render,
)  # fmt: skip
from miniature.models.training import Say, down_to_zero, optimise

PATCH_PX = 16
DIM = 64
"""Channels of a frame's embedding and of a token's last hidden state."""
VISION_HIDDEN, VISION_LAYERS, TEXT_LAYERS = 112, 3, 2
MAX_TOKENS = 96

FILMS, FRAMES_PER_FILM = 2400, 14
FILMS_PER_BATCH, FRAMES_PER_BATCH, SENTENCES_PER_BATCH = 48, 192, 96
STEPS = 1600
PEAK_LEARNING_RATE, WEIGHT_DECAY = 1.5e-3, 0.02
ABSENT = -1
SCALE = 8.0
"""Embeddings have norm 1, so that their channels are small: this brings them to about 1."""


def train(folder: Path, *, seed: int, say: Say) -> dict[str, float]:
    """Train the pair from scratch, save it to `folder` in bfloat16, and return its `held_out_scores`."""
    frames = render(seed, "train", range(FILMS), partial(often_near_events, frames=FRAMES_PER_FILM), say)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        tokenizer = build_tokenizer(frames)
        model = build_model(len(tokenizer))
        fit(model, tokenizer, frames, steps=STEPS, seed=seed, say=say)
    save(model, tokenizer, folder)
    return held_out_scores(folder, seed=seed)


def build_tokenizer(frames: Frames) -> Any:
    """Byte-level BPE in which every word of the sentences is one token; starts and ends texts as CLIP does."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<start>", "<end>", "<unk>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=1024, special_tokens=special, show_progress=False, initial_alphabet=alphabet
    )
    said = {text for of_film in frames.truths for now in of_film for text in _texts(now)}
    tokenizer.train_from_iterator(sorted(said), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", 1), ("<end>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<start>", eos_token="<end>", unk_token="<unk>",
        model_max_length=MAX_TOKENS,
    )  # fmt: skip


def _texts(now: FrameTruth) -> tuple[str, ...]:
    return full_sentence(now).text, *(caption.text for caption in now.captions)


def build_model(vocabulary: int) -> Any:
    """A CLIPModel with random weights, its temperature at CLIP's usual start."""
    from transformers import CLIPConfig, CLIPModel

    vision = {
        "hidden_size": VISION_HIDDEN, "intermediate_size": 3 * VISION_HIDDEN, "num_hidden_layers": VISION_LAYERS,
        "num_attention_heads": 4, "image_size": IMAGE_PX, "patch_size": PATCH_PX, "projection_dim": DIM,
    }  # fmt: skip
    text = {
        "hidden_size": DIM, "intermediate_size": 3 * DIM, "num_hidden_layers": TEXT_LAYERS, "num_attention_heads": 4,
        "vocab_size": vocabulary, "max_position_embeddings": MAX_TOKENS, "projection_dim": DIM,
        "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    return CLIPModel(CLIPConfig(vision_config=vision, text_config=text, projection_dim=DIM))


class StateHeads(nn.Module):
    """Auxiliary classifiers of a frame's embedding: one head for each varying state, such as how high the ball is."""

    def __init__(self, truths: Sequence[FrameTruth], dim: int) -> None:
        super().__init__()
        seen: dict[tuple[str, int], set[str]] = {}
        for now in truths:
            for part in now.objects:
                for k, state in enumerate(part.states):
                    seen.setdefault((part.name, k), set()).add(state)
        self.columns = {of: column for column, of in enumerate(sorted(seen))}
        self.states = {of: {state: k for k, state in enumerate(sorted(seen[of]))} for of in self.columns}
        self.heads = nn.ModuleList([nn.Linear(dim, len(states)) for states in self.states.values()])

    def targets(self, truths: Sequence[FrameTruth]) -> Tensor:
        """(frames, heads): index of each state, ABSENT where the object is not in the picture."""
        found = torch.full((len(truths), len(self.heads)), ABSENT)
        for row, now in enumerate(truths):
            for part in now.objects:
                for k, state in enumerate(part.states):
                    of = part.name, k
                    found[row, self.columns[of]] = self.states[of][state]
        return found

    def forward(self, embeds: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy per frame of embeds (N, dim), summed over the heads whose object is seen."""
        losses = [
            cross_entropy(head(SCALE * embeds), target, ignore_index=ABSENT, reduction="sum")
            for head, target in zip(self.heads, targets.T, strict=True)
        ]
        return torch.stack(losses).sum() / len(embeds)


def fit(model: Any, tokenizer: Any, frames: Frames, *, steps: int, seed: int, say: Say) -> list[float]:
    """Minimise the contrastive loss and that of the auxiliary heads for `steps` batches; returns their sums."""
    rng, heads = np.random.default_rng(seed), StateHeads([now for of_film in frames.truths for now in of_film], DIM)

    def loss_of_batch() -> Tensor:
        pixels, truths = _batch(frames, rng)
        sentences = [random_sentence(now, rng) for now in truths[:SENTENCES_PER_BATCH]]
        inputs = tokenizer([one.text for one in sentences], padding=True, return_tensors="pt")
        output = model(input_ids=inputs.input_ids, attention_mask=inputs.attention_mask, pixel_values=pixels)
        similar = output.logits_per_image[: len(sentences)]
        contrast = contrastive_loss(similar, fits(truths[: len(sentences)], sentences))
        loss: Tensor = contrast + heads(output.image_embeds, heads.targets(truths))
        return loss

    return optimise(
        [*model.parameters(), *heads.parameters()], loss_of_batch, steps=steps, learning_rate=PEAK_LEARNING_RATE,
        weight_decay=WEIGHT_DECAY, schedule=down_to_zero, counted=("encoders", FRAMES_PER_BATCH, "frames"), say=say,
    )  # fmt: skip


def _batch(frames: Frames, rng: np.random.Generator) -> tuple[Tensor, list[FrameTruth]]:
    """Normalised pixels (B, 3, H, W) and their content: a few frames of each of a few films."""
    films = rng.choice(len(frames.films), FILMS_PER_BATCH, replace=len(frames.films) < FILMS_PER_BATCH)
    per_film = FRAMES_PER_BATCH // FILMS_PER_BATCH
    index = np.stack([rng.choice(frames.pixels.shape[1], per_film, replace=False) for _ in films])
    x = torch.from_numpy(frames.pixels[films[:, None], index]).flatten(0, 1).permute(0, 3, 1, 2) / 255
    gain = torch.from_numpy(rng.uniform(0.9, 1.1, (len(x), 3, 1, 1))).float()
    # Video codecs and cameras alter pixels a little: the features should not mind.
    x = x * gain + 0.015 * torch.randn_like(x)
    processor = image_processor()
    mean, std = torch.tensor(processor.image_mean), torch.tensor(processor.image_std)
    truths = [frames.truths[film][k] for film, row in zip(films, index, strict=True) for k in row]
    return (x - mean[:, None, None]) / std[:, None, None], truths


def contrastive_loss(similar: Tensor, fit: np.ndarray) -> Tensor:
    """CLIP's loss of similarities (frames, sentences); each row and column shares its target among all that fit."""
    positive = torch.from_numpy(fit).float()
    return (_cross_entropy(similar, positive) + _cross_entropy(similar.T, positive.T)) / 2


def _cross_entropy(logits: Tensor, positive: Tensor) -> Tensor:
    return -(log_softmax(logits, dim=-1) * positive / positive.sum(-1, keepdim=True)).sum(-1).mean()


def save(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write a CLIP checkpoint in bfloat16, with the files of its two preprocessors."""
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    image_processor().save_pretrained(folder)
