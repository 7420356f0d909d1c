"""An encoder pair for pictures and captions: one small CLIP, trained on frames and sentences that fit them.

Flowley is to put sounds at the right moment, so the sentences tell the instant ("a ball, touching the floor"), and
each batch holds several frames of each of its films, which differ in nothing else. After 400 steps of contrast
alone, the features told kinds but hardly moments: so linear heads that read the objects' states off the embedding
(`readout`) are trained along, and thrown away. One folder serves as both: `flowley.encoders.VisualEncoder` reads its
vision tower, `TextEncoder` its text tower.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from pipelines.miniature.models.encoder_scores import held_out_scores
from pipelines.miniature.models.frames import IMAGE_PX, Frames, image_processor, often_near_events, render
from pipelines.miniature.models.moments import Moment, fits, full_sentence, random_sentence
from pipelines.miniature.models.readout import Readout
from pipelines.miniature.models.training import descend, down_to_zero
from pipelines.progress import Progress

PATCH_PX = 16
DIM = 64
"""Of a frame's embedding and of a token's last hidden state."""
VISION_HIDDEN, VISION_LAYERS, TEXT_LAYERS = 112, 3, 2
MAX_TOKENS = 96

FILMS, FRAMES_PER_FILM = 2400, 14
FILMS_PER_BATCH, FRAMES_PER_BATCH, SENTENCES_PER_BATCH = 48, 192, 96
STEPS = 1600
PEAK_LEARNING_RATE, WEIGHT_DECAY = 1.5e-3, 0.02


def train(folder: Path, *, seed: int, say: Callable[[str], None]) -> dict[str, float]:
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
    """Byte-level, for any text; every word of the sentences is one token. Starts and ends texts as CLIP does."""
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
    said = {text for of_film in frames.moments for now in of_film for text in _texts(now)}
    tokenizer.train_from_iterator(sorted(said), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", 1), ("<end>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<start>", eos_token="<end>", unk_token="<unk>",
        model_max_length=MAX_TOKENS,
    )  # fmt: skip


def _texts(now: Moment) -> tuple[str, ...]:
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


def fit(
    model: Any, tokenizer: Any, frames: Frames, *, steps: int, seed: int, say: Callable[[str], None]
) -> list[float]:
    """Minimise the contrastive loss and the readout's for `steps` batches; their sum at each."""
    rng, readout = np.random.default_rng(seed), Readout([now for of_film in frames.moments for now in of_film], DIM)

    def loss_of_batch() -> Tensor:
        pixels, moments = _batch(frames, rng)
        sentences = [random_sentence(now, rng) for now in moments[:SENTENCES_PER_BATCH]]
        inputs = tokenizer([one.text for one in sentences], padding=True, return_tensors="pt")
        output = model(input_ids=inputs.input_ids, attention_mask=inputs.attention_mask, pixel_values=pixels)
        similar = output.logits_per_image[: len(sentences)]
        contrast = contrastive_loss(similar, fits(moments[: len(sentences)], sentences))
        loss: Tensor = contrast + readout(output.image_embeds, readout.targets(moments))
        return loss

    progress = Progress("encoders: training", steps * FRAMES_PER_BATCH, "frames", say)
    return descend(
        [*model.parameters(), *readout.parameters()], loss_of_batch, steps=steps,
        learning_rate=PEAK_LEARNING_RATE, weight_decay=WEIGHT_DECAY, schedule=down_to_zero,
        progress=progress, batch_size=FRAMES_PER_BATCH,
    )  # fmt: skip


def _batch(frames: Frames, rng: np.random.Generator) -> tuple[Tensor, list[Moment]]:
    """Normalised pixels (B, 3, H, W) and what they show: a few frames of each of a few films."""
    films = rng.choice(len(frames.films), FILMS_PER_BATCH, replace=len(frames.films) < FILMS_PER_BATCH)
    per_film = FRAMES_PER_BATCH // FILMS_PER_BATCH
    index = np.stack([rng.choice(frames.pixels.shape[1], per_film, replace=False) for _ in films])
    x = torch.from_numpy(frames.pixels[films[:, None], index]).flatten(0, 1).permute(0, 3, 1, 2) / 255
    gain = torch.from_numpy(rng.uniform(0.9, 1.1, (len(x), 3, 1, 1))).float()
    # Video codecs and cameras alter pixels a little: the features should not mind.
    x = x * gain + 0.015 * torch.randn_like(x)
    moments = [frames.moments[film][k] for film, row in zip(films, index, strict=True) for k in row]
    return _normalised(x), moments


def _normalised(x: Tensor) -> Tensor:
    processor = image_processor()
    mean, std = torch.tensor(processor.image_mean), torch.tensor(processor.image_std)
    return (x - mean[:, None, None]) / std[:, None, None]


def contrastive_loss(similar: Tensor, fit: np.ndarray) -> Tensor:
    """CLIP's loss of (frames, sentences), the target shared by all sentences that fit a frame, and by all frames."""
    positive = torch.from_numpy(fit).float()
    return (_cross_entropy(similar, positive) + _cross_entropy(similar.T, positive.T)) / 2


def _cross_entropy(logits: Tensor, positive: Tensor) -> Tensor:
    return -(log_softmax(logits, dim=-1) * positive / positive.sum(-1, keepdim=True)).sum(-1).mean()


def save(model: Any, tokenizer: Any, folder: Path) -> None:
    """An ordinary CLIP checkpoint in bfloat16, with the files of its two preprocessors."""
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    image_processor().save_pretrained(folder)
